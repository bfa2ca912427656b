"""The rows of the study of SNIP: SST-2 as in the other studies, and MRPC's pairs of sentences."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from study_rows import DRAW_SEED, whole_file, write_rows
from tasks import MAXIMUM_TOKENS, TASKS, Row, TaskRows, read_rows
from transformers import AutoTokenizer, PreTrainedTokenizerBase

TITLES = {"sst2": TASKS["sst2"].title, "mrpc": "MRPC"}
# Of MRPC's train file: every ninth row, which makes as many as dev has.
_HELD_OUT = 9
_COLUMNS = {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}


class PairRows:
    """MRPC's rows under GLUE's usual names, tokenised as they are asked for; what `TaskRows` is for the other tasks.

    Held-out rows are drawn first, always the same ones; neither they nor copies of their texts are trained on.

    Args:
        data: the folder with the data sets.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, data: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._folder, self._tokenizer = data / "mrpc", tokenizer
        rows = self._read("train.tsv")
        order = np.random.default_rng(DRAW_SEED).permutation(len(rows))
        count = len(rows) // _HELD_OUT
        self._held_out = [rows[index] for index in order[:count]]
        taken = {(row["sentence1"], row["sentence2"]) for row in self._held_out}
        drawn = (rows[index] for index in order[count:])
        self._pool = [row for row in drawn if (row["sentence1"], row["sentence2"]) not in taken]

    def drawn(self, count: int) -> list[Row]:
        """Train rows drawn without replacement; a larger sample holds the smaller ones.

        Raises:
            ValueError: there are not so many.
        """
        if count > len(self._pool):
            raise ValueError(f"{count} examples asked for, but {TITLES['mrpc']} has {len(self._pool)} to draw from")
        return self._pool[:count]

    def evaluation(self, split: str, limit: int | None = None) -> Dataset:
        """The "dev" file or the "held_out" train rows; `limit` keeps the first ones only."""
        rows = self._read("dev.tsv") if split == "dev" else self._held_out
        return self.tokenised(rows[:limit])

    def tokenised(self, rows: Sequence[Row]) -> Dataset:
        """Rows as a model takes them."""
        texts = [[row[name] for row in rows] for name in ("sentence1", "sentence2")]
        encoded = dict(self._tokenizer(*texts, truncation=True, max_length=MAXIMUM_TOKENS))
        return Dataset.from_dict({**encoded, "labels": [int(row["label"]) for row in rows]})

    def _read(self, name: str) -> list[Row]:
        rows = read_rows(self._folder / name)
        return [{new: row[old].strip() for new, old in _COLUMNS.items()} for row in rows]


def evaluation_rows(
    task: str, data: Path, tokenizer: PreTrainedTokenizerBase, split: str, limit: int | None
) -> Dataset:
    """The rows that models are judged by, tokenised; see `TaskRows.evaluation`."""
    if task == "mrpc":
        return PairRows(data, tokenizer).evaluation(split, limit)
    return TaskRows(TASKS[task], data, tokenizer, {}).evaluation(split, limit)


def train_rows(task: str, data: Path, tokenizer: PreTrainedTokenizerBase, count: int) -> Dataset:
    """The first of the rows that models are trained on, tokenised."""
    if task == "mrpc":
        pairs = PairRows(data, tokenizer)
        return pairs.tokenised(pairs.drawn(count))
    return TaskRows(TASKS[task], data, tokenizer, {}).calibration(DRAW_SEED, count)


def write_train_rows(folder: Path, task: str, count: int, data: Path, base: Path) -> Path:
    """Train rows as a tab-separated file, if it is not there yet; see `write_rows`."""
    if task != "mrpc":
        return write_rows(folder, TASKS[task], count, data, base)
    path = folder / f"{task}-{count}.tsv"
    if not path.is_file():
        rows = PairRows(data, AutoTokenizer.from_pretrained(base)).drawn(count)
        with whole_file(path) as file:
            writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
            writer.writerows([list(_COLUMNS), *(list(row.values()) for row in rows)])
    return path
