"""The tasks of the study of head pruning, and the files of rows that its scripts read, written once."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from evaluation import predicted_classes
from study_rows import DRAW_SEED, whole_file
from tasks import MAXIMUM_TOKENS, Row, read_rows
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

# Of the train rows: a tenth that no training sees, for choosing settings without a look at dev.
HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 2000
_HELD_OUT_SEED = 2022
# What the meta-pruner is trained on, as options of `train_meta_pruner.py`: QNLI is not among it.
CORPORA = {
    "single_files": ("sst2/train.tsv", "trec/train.tsv"),
    "pair_files": ("stsb/train.tsv", "mrpc/train.tsv:#1 String:#2 String"),
}


@dataclass(frozen=True)
class HeadTask:
    """A data set in GLUE's own columns.

    Attributes:
        name: of the task in options, and of the data's folder.
        title: how the data set is called.
        columns: the text columns.
        label: the column of the classes.
        held_out_words: the shortest held-out row; SST-2's train file holds phrases, its dev file sentences.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    label: str = "label"
    held_out_words: int = 1

    @property
    def input_type(self) -> str:
        """As the meta-pruner calls it."""
        return "single" if len(self.columns) == 1 else "pair"

    @property
    def text_columns(self) -> tuple[str, ...]:
        """What the columns are called in all files that are written: names that the scripts find by themselves."""
        return ("sentence",) if len(self.columns) == 1 else ("sentence1", "sentence2")


TASKS = {
    task.name: task
    for task in (
        HeadTask("sst2", "SST-2", ("sentence",), held_out_words=10),
        HeadTask("mrpc", "MRPC", ("#1 String", "#2 String"), label="Quality"),
        HeadTask("qnli", "QNLI", ("question", "sentence")),
    )
}
# Its first sentences show the pruner what single texts look like; nothing is trained on it.
STS = HeadTask("stsb", "STS-B", ("sentence1",), label="score")
ALL_TASKS = TASKS | {STS.name: STS}


class HeadRows:
    """The rows of a task, under the names of `HeadTask.text_columns` and "label".

    Args:
        task: which task.
        data: the folder with the data sets.
    """

    def __init__(self, task: HeadTask, data: Path) -> None:
        self.task, self._folder = task, data / task.name

    @cached_property
    def dev(self) -> list[Row]:
        """The rows of the dev file."""
        return self._read("dev.tsv")

    @cached_property
    def held_out(self) -> list[Row]:
        """Train rows, always the same ones."""
        train = self._read("train.tsv")
        order = np.random.default_rng(_HELD_OUT_SEED).permutation(len(train))
        words = [sum(len(text.split()) for text in self.texts(row)) for row in train]
        long_enough = [train[index] for index in order if words[index] >= self.task.held_out_words]
        return long_enough[: min(MOST_HELD_OUT, round(HELD_OUT_SHARE * len(train)))]

    def training(self, count: int) -> list[Row]:
        """`count` of the other train rows, or all; none is a copy of a held-out one, and more rows hold the fewer."""
        taken = {self.texts(row) for row in self.held_out}
        rows = [row for row in self._read("train.tsv") if self.texts(row) not in taken]
        return [rows[index] for index in np.random.default_rng(DRAW_SEED).permutation(len(rows))[:count]]

    def texts(self, row: Row) -> tuple[str, ...]:
        """The texts of a row."""
        return tuple(row[column] for column in self.task.text_columns)

    def _read(self, name: str) -> list[Row]:
        names = dict(zip((*self.task.columns, self.task.label), (*self.task.text_columns, "label"), strict=True))
        rows = read_rows(self._folder / name)
        return [{new: row[old].strip() for old, new in names.items()} for row in rows]


def write_training_rows(folder: Path, task: HeadTask, count: int, data: Path) -> Path:
    """Train rows as a tab-separated file, if it is not there yet; see `HeadRows.training`."""
    path = folder / f"{task.name}-{count}.tsv"
    if not path.is_file():
        rows = HeadRows(task, data).training(count)
        with whole_file(path) as file:
            writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
            writer.writerows([list(rows[0]), *(row.values() for row in rows)])
    return path


def rows_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: HeadTask, rows: list[Row]
) -> torch.Tensor:
    """Which rows a classifier has right: bool `[rows]`."""
    texts = [[row[column] for row in rows] for column in task.text_columns]
    encoded: dict[str, Any] = dict(tokenizer(*texts, truncation=True, max_length=MAXIMUM_TOKENS))
    labels = [model.config.label2id[row["label"]] for row in rows]
    found = predicted_classes(
        model, Dataset.from_dict({**encoded, "labels": labels}), DataCollatorWithPadding(tokenizer)
    )
    return found == torch.tensor(labels)
