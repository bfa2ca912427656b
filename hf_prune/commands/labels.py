"""Labels as files and data sets have them, as the numbers that the model was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset
from transformers import PreTrainedConfig

from ..errors import PruningError


class LabelMap:
    """Turns the labels of one column into class ids.

    Names are looked up in the model's `label2id`, whatever their case. Where a data set names its classes and these
    names are the model's, the names decide, because the two may number them differently. Other numbers are class ids
    as they are.

    Args:
        rows: the data set.
        column: its column of labels, or of lists of labels.
        config: of the model.
    """

    def __init__(self, rows: Dataset, column: str, config: PreTrainedConfig) -> None:
        self._column = column
        self._classes = int(config.num_labels)
        self._ids = {str(name).casefold(): int(label) for name, label in (config.label2id or {}).items()}
        self._names = self._dataset_names(rows.features[column])

    def ids(self, labels: Sequence[Any]) -> list[int]:
        """The class ids of a sequence of labels.

        Raises:
            PruningError: a label that the model does not know; the message lists those it knows.
        """
        distinct = {_key(label) for label in labels}
        named = any(self._is_name(label) for label in distinct)
        table = {label: self._id(label, named) for label in distinct}
        return [table[_key(label)] for label in labels]

    def _dataset_names(self, feature: Any) -> list[str] | None:
        inner = getattr(feature, "feature", feature)
        names = [name.casefold() for name in inner.names] if isinstance(inner, ClassLabel) else []
        return names if names and set(names) <= set(self._ids) else None

    def _is_name(self, label: Any) -> bool:
        return isinstance(label, str) and label.casefold() in self._ids

    def _id(self, label: Any, named: bool) -> int:
        if self._is_name(label):
            return self._ids[label.casefold()]
        number = None if named else whole_number(label)
        if number is None:
            raise PruningError(
                f"Column {self._column!r} holds the label {label!r}, which the model does not know; it knows"
                f" {', '.join(map(repr, self._ids))} (in any case), or numbers from 0 to {self._classes - 1}."
            )
        if self._names is not None and 0 <= number < len(self._names):
            return self._ids[self._names[number]]
        if not 0 <= number < self._classes:
            raise PruningError(
                f"Column {self._column!r} holds the label {label!r}, but the model's labels are 0 to"
                f" {self._classes - 1}. Rows without a label (-1 in GLUE's test splits) cannot be used."
            )
        return number


def whole_number(label: Any) -> int | None:
    """A label as a whole number, from 1, 1.0, "1" or True; None if it is none."""
    try:
        number = float(label)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def regression_targets(rows: Dataset, column: str) -> list[float]:
    """A column of numbers.

    Raises:
        PruningError: a value that is not a finite number, with its row.
    """
    targets = []
    for number, value in enumerate(rows[column], 1):
        try:
            target = float(value)
        except (TypeError, ValueError):
            target = math.nan
        if not math.isfinite(target):
            raise PruningError(
                f"Column {column!r}, row {number}: {value!r} is not a number, and the model is a regression"
                " (num_labels is 1)."
            )
        targets.append(target)
    return targets


def listed(value: Any) -> list[Any]:
    """The items of a list, or the words of a string."""
    return value.split() if isinstance(value, str) else list(value)


def _key(label: Any) -> Any:
    return str(label) if isinstance(label, list | dict) else label
