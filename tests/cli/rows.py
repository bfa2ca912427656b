"""Rows of text that a tiny tokenizer knows, and how tests call the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from typer.testing import Result

WORDS = "a bad bird cat dog film fine good is it not of on plays runs sleeps small the very was".split()  # noqa: SIM905

Call = Callable[..., Result]


def sentence(index: int) -> str:
    """A few words, different for different numbers."""
    return " ".join(WORDS[(index * step + step) % len(WORDS)] for step in range(2, 4 + index % 4))


def write_tsv(path: Path, columns: dict[str, Sequence[Any]]) -> Path:
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join("\t".join(map(str, row)) for row in [columns, *rows]) + "\n", encoding="utf8")
    return path
