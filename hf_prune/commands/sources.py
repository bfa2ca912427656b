"""Calibration and evaluation rows: from files, or from a data set by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from datasets import Dataset, load_dataset

from ..errors import PruningError
from .arguments import DataArguments
from .console import first_line
from .files import read_rows

# GLUE's MNLI has no split called "validation".
_VALIDATION_SPLITS = ("validation", "validation_matched")


def load_rows(data: DataArguments, calibrate: bool = True) -> tuple[Dataset | None, Dataset | None]:
    """The rows to calibrate on and those to measure on, as far as there are any.

    Args:
        data: where they are.
        calibrate: whether there is a use for rows to calibrate on; otherwise they are not read.

    Raises:
        PruningError: a file, a data set or a split that cannot be had.
    """
    if data.dataset_name is None:
        train = read_rows(data.train_file) if data.train_file and calibrate else None
        return train, read_rows(data.validation_file) if data.validation_file else None
    splits = _load_splits(data.dataset_name, data.dataset_config_name)
    train = _split(data, splits, data.train_split, "train_split") if calibrate else None
    name = data.validation_split or next((name for name in _VALIDATION_SPLITS if name in splits), None)
    return train, None if name is None else _split(data, splits, name, "validation_split")


def sample(rows: Dataset, count: int | None, seed: int) -> Dataset:
    """`count` rows drawn without replacement, or all of them if there are no more (or `count` is None)."""
    if count is None or count >= len(rows):
        return rows
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(order[:count].tolist())


def _load_splits(name: str, config_name: str | None) -> Mapping[str, Dataset]:
    try:
        return load_dataset(name, config_name)
    except (OSError, ValueError, RuntimeError) as error:
        where = name if config_name is None else f"{name} ({config_name})"
        raise PruningError(
            f"The data set {where} could not be loaded: {type(error).__name__}: {first_line(error)}"
            " Check the name and the connection, or pass --train_file."
        ) from error


def _split(data: DataArguments, splits: Mapping[str, Dataset], name: str, option: str) -> Dataset:
    if name not in splits:
        raise PruningError(
            f"{data.dataset_name} has no split {name!r}; it has {', '.join(splits)}. Choose one with --{option}."
        )
    if not len(splits[name]):
        raise PruningError(f"The split {name!r} of {data.dataset_name} holds no rows.")
    return splits[name]
