"""The texts that the study "Compressing BERT" pre-trains on, written once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from study_rows import whole_file


def write_texts(folder: Path, data: Path, part: str) -> Path:
    """WikiText-2's part "train" or "valid" as lines of ordinary text."""
    path = folder / f"wikitext2-{part}.txt"
    if not path.is_file():
        source = (data / "wikitext2" / f"wiki.{part}.tokens").read_text(encoding="utf8")
        with whole_file(path) as file:
            file.writelines(f"{line}\n" for line in readable_lines(source.split("\n")))
    return path


def readable_lines(lines: Iterable[str]) -> Iterator[str]:
    """WikiText's lines without headings and empty ones; its marks for rare words and joined signs become BERT's."""
    for line in map(str.strip, lines):
        if line and not line.startswith("="):
            for sign in "-,.":
                line = line.replace(f" @{sign}@ ", sign)
            yield line.replace("<unk>", "[UNK]")
