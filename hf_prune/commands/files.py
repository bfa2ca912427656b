"""Rows from files of the user's: TSV as GLUE has it, CSV, JSON, JSON lines, Parquet and plain text."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
from datasets import Dataset

from ..errors import PruningError

# One field may hold a whole document.
_FIELD_LIMIT = 2**31 - 1


def read_rows(path: Path) -> Dataset:
    """Reads a file of rows, in memory.

    - `.tsv`: a header, then tab-separated values; quotation marks are ordinary characters, as in GLUE's files;
    - `.csv`: a header, then comma-separated values, quoted where needed;
    - `.json`, `.jsonl`: a list of objects, an object with such a list under "data", or one object per line;
    - `.parquet`;
    - `.txt`: a text per line, in a column "text"; empty lines are left out.

    TSV and CSV values are strings. Nothing is read as a missing value, so a sentence that is "null" stays one.

    Raises:
        PruningError: no such file, an unknown ending, no rows, or rows that are not as described; with the line.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise PruningError(f"{path}: files ending in {path.suffix!r} cannot be read; use {', '.join(_READERS)}.")
    if not path.is_file():
        raise PruningError(f"There is no file {path}.")
    try:
        rows = reader(path)
    except UnicodeDecodeError as error:
        raise PruningError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Convert it.") from error
    if not len(rows):
        raise PruningError(f"{path} holds no rows.")
    return rows


def _read_tsv(path: Path) -> Dataset:
    return _read_table(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_csv(path: Path) -> Dataset:
    return _read_table(path, strict=True)


def _read_table(path: Path, **form: Any) -> Dataset:
    csv.field_size_limit(_FIELD_LIMIT)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, **form)
        try:
            header = next(reader, [])
            rows = []
            for row in reader:
                if len(row) != len(header) and row:
                    raise PruningError(
                        f"{path}, line {reader.line_num}: {len(row)} values, but the header names {len(header)} columns"
                        f" ({', '.join(header)[:200]})."
                    )
                rows += [row] if row else []
        except csv.Error as error:
            raise PruningError(f"{path}, line {reader.line_num}: {error}.") from error
    if len(set(header)) != len(header):
        raise PruningError(f"{path}: the header names a column twice ({', '.join(header)[:200]}).")
    return Dataset.from_dict({name: [row[index] for row in rows] for index, name in enumerate(header)})


def _read_json(path: Path) -> Dataset:
    text = path.read_text(encoding="utf-8-sig")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return _objects(path, _json_lines(path, text))
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]
    return _objects(path, whole if isinstance(whole, list) else [whole])


def _json_lines(path: Path, text: str) -> list[Any]:
    rows = []
    # Not splitlines(): it also splits at characters that JSON strings may hold as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise PruningError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}).") from error
    return rows


def _objects(path: Path, rows: Iterable[Any]) -> Dataset:
    objects = list(rows)
    for number, row in enumerate(objects, 1):
        if not isinstance(row, dict):
            raise PruningError(f"{path}: row {number} is {str(row)[:60]!r}, where an object with columns is needed.")
    try:
        return Dataset.from_list(objects)
    except (TypeError, ValueError) as error:
        raise PruningError(f"{path}: its rows do not form columns of one type each ({error}).") from error


def _read_parquet(path: Path) -> Dataset:
    try:
        return Dataset(pyarrow.parquet.read_table(path))
    except pyarrow.ArrowException as error:
        raise PruningError(f"{path} is not a Parquet file ({error}).") from error


def _read_text(path: Path) -> Dataset:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return Dataset.from_dict({"text": [line.strip() for line in lines if line.strip()]})


_READERS: dict[str, Callable[[Path], Dataset]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
