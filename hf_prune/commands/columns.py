"""Which columns hold the texts and the labels: the ones that are named, or GLUE's and other usual names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from ..errors import PruningError
from .arguments import DataArguments

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


def text_columns(rows: Dataset, data: DataArguments) -> tuple[str, str | None]:
    """The column of the text, and of the second text of a pair.

    Raises:
        PruningError: a named column is absent, or none of the usual ones is there.
    """
    if data.text_column is not None:
        pair = None if data.text_pair_column is None else require(rows, data.text_pair_column, "text_pair_column")
        return require(rows, data.text_column, "text_column"), pair
    for first, second in TEXT_COLUMNS:
        if {first, second or first} <= set(rows.column_names):
            return first, second
    raise PruningError(
        f"None of the usual text columns is among {_listed(rows)}. Name yours with --text_column (and"
        " --text_pair_column for pairs)."
    )


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
