"""The files of labelled rows that studies train on, written once."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks import Task, TaskRows
from transformers import AutoTokenizer

DRAW_SEED = 0


def write_rows(folder: Path, task: Task, count: int, data: Path, base: Path) -> Path:
    """Train rows as a tab-separated file of texts and labels; none of them is a held-out row.

    Args:
        folder: where the file is written, if it is not there yet.
        task: whose rows.
        count: how many; a larger number holds the rows of a smaller one.
        data, base: folders of the data sets and of a model whose tokenizer fits.
    """
    path = folder / f"{task.name}-{count}.tsv"
    if not path.is_file():
        rows = TaskRows(task, data, AutoTokenizer.from_pretrained(base), {}).drawn(DRAW_SEED, count)
        lines = [[*(row[column].strip() for column in task.columns), row["label"]] for row in rows]
        with whole_file(path) as file:
            writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
            writer.writerows([[*task.columns, "label"], *lines])
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Any]:
    """A text file to write that is there completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf8", newline="") as file:
        yield file
    os.replace(file.name, path)
