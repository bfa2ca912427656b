"""The two tasks that are measured: models and rows, under their public names."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

MAXIMUM_TOKENS = 128
# Rows of the train file that no calibration sample may hold, for choosing settings without a look at dev.
HELD_OUT_ROWS = 2000
_HELD_OUT_SEED = 2022

Row = dict[str, str]


@dataclass(frozen=True)
class Task:
    """A model with the data it was fine-tuned on.

    Attributes:
        name: of the task in options and file names, and of the data's folder.
        title: how the data set is called.
        model: how the model is called.
        folder: the model's folder.
        columns: the text columns.
        held_out_words: shortest held-out row; SST-2's train file holds phrases, its dev file sentences.
    """

    name: str
    title: str
    model: str
    folder: str
    columns: tuple[str, ...]
    held_out_words: int = 1


TASKS = {
    task.name: task
    for task in (
        Task("sst2", "SST-2", "all-MiniLM-L6-v2 fine-tuned on SST-2", "minilm-sst2", ("sentence",), 10),
        Task("qnli", "QNLI", "all-MiniLM-L6-v2 fine-tuned on QNLI", "minilm-qnli", ("question", "sentence")),
    )
}


def load_model(task: Task, models: Path, device: torch.device) -> PreTrainedModel:
    """The fine-tuned model in float32 and evaluation mode."""
    folder = models / task.folder
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(device).eval()


def load_tokenizer(task: Task, models: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the fine-tuned model."""
    return AutoTokenizer.from_pretrained(models / task.folder)


class TaskRows:
    """The rows of one task, tokenised as they are asked for.

    Held-out rows are drawn first, always the same ones, and calibration samples from what is left, so that no
    calibration row (nor a copy of its text) is ever held out.

    Args:
        task: which task.
        data: the folder with the data sets.
        tokenizer: the model's tokenizer.
        label2id: the model's label names.
    """

    def __init__(self, task: Task, data: Path, tokenizer: PreTrainedTokenizerBase, label2id: dict[str, int]) -> None:
        self.task = task
        self._folder = data / task.name
        self._tokenizer = tokenizer
        self._label2id = label2id
        train = read_rows(self._folder / "train.tsv")
        order = np.random.default_rng(_HELD_OUT_SEED).permutation(len(train))
        long_enough = [index for index in order if self._words(train[index]) >= task.held_out_words]
        self._held_out = [train[index] for index in long_enough[:HELD_OUT_ROWS]]
        taken = {self._texts(row) for row in self._held_out}
        self._pool = [row for row in train if self._texts(row) not in taken]

    def calibration(self, seed: int, examples: int) -> Dataset:
        """Train rows, tokenised; see `drawn`."""
        return self._tokenised(self.drawn(seed, examples))

    def drawn(self, seed: int, examples: int) -> list[Row]:
        """Train rows drawn without replacement; a larger sample of the same seed holds the smaller ones."""
        order = np.random.default_rng(seed).permutation(len(self._pool))[:examples]
        if len(order) < examples:
            raise ValueError(f"{examples} examples asked for, but {self.task.title} has {len(self._pool)} to draw from")
        return [self._pool[index] for index in order]

    def evaluation(self, split: str, limit: int | None = None) -> Dataset:
        """The "dev" file or the "held_out" train rows; `limit` keeps the first ones only."""
        rows = read_rows(self._folder / "dev.tsv") if split == "dev" else self._held_out
        return self._tokenised(rows[:limit])

    def _texts(self, row: Row) -> tuple[str, ...]:
        return tuple(row[column].strip() for column in self.task.columns)

    def _words(self, row: Row) -> int:
        return sum(len(text.split()) for text in self._texts(row))

    def _tokenised(self, rows: Sequence[Row]) -> Dataset:
        texts = [[row[column] for row in rows] for column in self.task.columns]
        encoded: dict[str, Any] = dict(self._tokenizer(*texts, truncation=True, max_length=MAXIMUM_TOKENS))
        return Dataset.from_dict({**encoded, "labels": [self._label(row["label"]) for row in rows]})

    def _label(self, label: str) -> int:
        return self._label2id[label] if label in self._label2id else int(label)


def read_rows(path: Path) -> list[Row]:
    """The rows of a TSV file with a header, as GLUE has them: quotation marks are ordinary characters."""
    with path.open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
