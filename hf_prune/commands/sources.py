"""Where calibration and evaluation rows come from: files, or a data set by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset

from ..errors import PruningError
from .files import read_rows

# GLUE's MNLI has no split called "validation".
_VALIDATION_SPLITS = ("validation", "validation_matched")


@dataclass(frozen=True)
class DataSource:
    """What the user said about the data.

    Attributes:
        train_file, validation_file: files, see `hf_prune.commands.files.read_rows`.
        dataset_name, dataset_config_name: a data set for `datasets.load_dataset`: on the Hub, or a folder.
        train_split, validation_split: its splits; without `validation_split` the usual names are tried.
    """

    train_file: Path | None = None
    validation_file: Path | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    train_split: str = "train"
    validation_split: str | None = None

    def check(self) -> None:
        """Raises PruningError unless it says clearly where the calibration rows are."""
        if self.dataset_name and (self.train_file or self.validation_file):
            raise PruningError("--dataset_name and --train_file/--validation_file exclude each other; give one source.")
        if not self.dataset_name and not self.train_file:
            raise PruningError(
                "Labelled rows are needed to calibrate on: give --train_file (.tsv, .csv, .json, .jsonl, .parquet, .txt)"
                " or --dataset_name."
            )
        for name in ("dataset_config_name", "validation_split"):
            if getattr(self, name) and not self.dataset_name:
                raise PruningError(f"--{name} belongs to --dataset_name, which is not given.")

    def load(self) -> tuple[Dataset, Dataset | None]:
        """The training rows, and the validation rows if there are any.

        Raises:
            PruningError: a file, a data set or a split that cannot be had.
        """
        self.check()
        if self.train_file:
            return read_rows(self.train_file), read_rows(self.validation_file) if self.validation_file else None
        splits = _load_splits(str(self.dataset_name), self.dataset_config_name)
        validation = self.validation_split
        if validation is None:
            validation = next((name for name in _VALIDATION_SPLITS if name in splits), None)
        train = self._split(splits, self.train_split, "train_split")
        return train, None if validation is None else self._split(splits, validation, "validation_split")

    def _split(self, splits: Mapping[str, Dataset], name: str, option: str) -> Dataset:
        if name not in splits:
            raise PruningError(
                f"{self.dataset_name} has no split {name!r}; it has {', '.join(splits)}. Choose one with --{option}."
            )
        if not len(splits[name]):
            raise PruningError(f"The split {name!r} of {self.dataset_name} holds no rows.")
        return splits[name]


def _load_splits(name: str, config_name: str | None) -> Mapping[str, Dataset]:
    try:
        return load_dataset(name, config_name)
    except (OSError, ValueError, RuntimeError) as error:
        where = name if config_name is None else f"{name} ({config_name})"
        raise PruningError(
            f"The data set {where} could not be loaded: {type(error).__name__}: {str(error).splitlines()[0]}"
            " Check the name and the connection, or pass --train_file."
        ) from error


def sample(rows: Dataset, count: int | None, seed: int) -> Dataset:
    """`count` rows drawn without replacement, or all of them if there are no more (or `count` is None).

    Raises:
        PruningError: `count` is below 1.
    """
    if count is None or count >= len(rows):
        return rows
    if count < 1:
        raise PruningError(f"{count} rows cannot be sampled; ask for at least 1.")
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(order[:count].tolist())
