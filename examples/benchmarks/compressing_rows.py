"""The files that the study trains on, written once."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks import TaskRows

WIKITEXT = ("train", "valid")
DRAW_SEED = 0


def write_rows(folder: Path, source: TaskRows, count: int) -> Path:
    """Train rows with one text column as a file; none of them is a held-out row."""
    path = folder / f"{source.task.name}-{count}.tsv"
    [column] = source.task.columns
    if not path.is_file():
        rows = source.drawn(DRAW_SEED, count)
        with _whole(path) as file:
            writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
            writer.writerows([(column, "label"), *((row[column].strip(), row["label"]) for row in rows)])
    return path


def write_texts(folder: Path, data: Path) -> dict[str, Path]:
    """WikiText-2's train and validation parts as lines of ordinary text."""
    paths = {part: folder / f"wikitext2-{part}.txt" for part in WIKITEXT}
    for part, path in paths.items():
        if not path.is_file():
            source = (data / "wikitext2" / f"wiki.{part}.tokens").read_text(encoding="utf8")
            with _whole(path) as file:
                file.writelines(f"{line}\n" for line in readable_lines(source.split("\n")))
    return paths


def readable_lines(lines: Iterable[str]) -> Iterator[str]:
    """WikiText's lines without headings and empty ones; its marks for rare words and joined signs become BERT's."""
    for line in map(str.strip, lines):
        if line and not line.startswith("="):
            for sign in "-,.":
                line = line.replace(f" @{sign}@ ", sign)
            yield line.replace("<unk>", "[UNK]")


@contextmanager
def _whole(path: Path) -> Iterator[Any]:
    """A file that is there completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf8", newline="") as file:
        yield file
    os.replace(file.name, path)
