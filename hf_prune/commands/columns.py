"""Which columns hold the texts and the labels: the ones that are named, or GLUE's and other usual names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ..errors import PruningError

TEXT_COLUMNS: tuple[tuple[str, str | None], ...] = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence", None),
    ("text", None),
)
LABEL_COLUMNS = ("label", "labels", "score")
WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "pos_tags", "chunk_tags", "tags", "labels")


@dataclass(frozen=True)
class ColumnNames:
    """The columns as the user named them; None where the usual names are to be tried."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None

    def texts(self, rows: Dataset) -> tuple[str, str | None]:
        """The column of the text, and of the second text of a pair."""
        if self.text is None and self.text_pair is not None:
            raise PruningError("--text_pair_column names the second text of a pair; name the first with --text_column.")
        if self.text is not None:
            pair = None if self.text_pair is None else require(rows, self.text_pair, "text_pair_column")
            return require(rows, self.text, "text_column"), pair
        for first, second in TEXT_COLUMNS:
            if {first, second or first} <= set(rows.column_names):
                return first, second
        raise PruningError(
            f"None of the usual text columns is among {_listed(rows)}. Name yours with --text_column (and"
            " --text_pair_column for pairs)."
        )

    def labels(self, rows: Dataset, usual: Sequence[str] = LABEL_COLUMNS) -> str:
        """The column of the labels."""
        return choose(rows, self.label, "label_column", usual)


def choose(rows: Dataset, named: str | None, option: str, usual: Sequence[str]) -> str:
    """The named column, or else the first usual one that is there.

    Raises:
        PruningError: the named one is absent, or none of the usual ones is there.
    """
    if named is not None:
        return require(rows, named, option)
    for name in usual:
        if name in rows.column_names:
            return name
    raise PruningError(f"None of {', '.join(usual)} is among the columns {_listed(rows)}. Name yours with --{option}.")


def require(rows: Dataset, name: str, option: str) -> str:
    """The column's name, checked to be there."""
    if name not in rows.column_names:
        raise PruningError(f"There is no column {name!r} among {_listed(rows)}. Name the right one with --{option}.")
    return name


def texts_of(rows: Dataset, column: str) -> list[str]:
    """A column's texts.

    Raises:
        PruningError: a value that is not a text, with its row.
    """
    values: list[Any] = list(rows[column])
    for number, value in enumerate(values, 1):
        if not isinstance(value, str):
            raise PruningError(f"Column {column!r}, row {number}: {value!r} is not a text.")
    return values


def _listed(rows: Dataset) -> str:
    return ", ".join(rows.column_names)
