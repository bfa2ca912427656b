from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset

from hf_prune.commands.files import read_rows
from hf_prune.errors import PruningError

ROWS = {"text": ['He said "no', "null", "NA", "a, b"], "label": ["1", "0", "1", "0"]}


def test_tsv_takes_quotation_marks_and_null_as_they_are(tmp_path: Path) -> None:
    lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in zip(*ROWS.values(), strict=True))]
    file = tmp_path / "rows.tsv"
    file.write_text("\ufeff" + "\n".join(lines) + "\n\n", encoding="utf8")
    assert read_rows(file).to_dict() == ROWS


def test_csv_is_quoted(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('text,label\n"He said ""no",1\nnull,0\nNA,1\n"a, b",0\n')
    assert read_rows(file).to_dict() == ROWS


def test_json_in_its_three_forms(tmp_path: Path) -> None:
    rows = [{"text": "a b\u2028c", "label": 1}, {"text": "d", "label": 0}]
    forms = {
        "list.json": json.dumps(rows),
        "data.json": json.dumps({"version": 1, "data": rows}),
        "lines.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n",
        "lines.json": "\n\n".join(json.dumps(row) for row in rows),
        "one.jsonl": json.dumps(rows[0]),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text, encoding="utf8")
        expected = rows[:1] if name == "one.jsonl" else rows
        assert read_rows(tmp_path / name).to_list() == expected, name


def test_parquet_and_plain_text(tmp_path: Path) -> None:
    Dataset.from_dict(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet").to_dict() == ROWS
    (tmp_path / "rows.txt").write_text("one \n\n  two\nthree")
    assert read_rows(tmp_path / "rows.txt").to_dict() == {"text": ["one", "two", "three"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.xlsx", b"", r"ending in '.xlsx' cannot be read; use .tsv, .csv"),
        ("rows.tsv", b"text\tlabel\na\t1\nb\n", "line 3: 1 values, but the header names 2 columns"),
        ("rows.tsv", b"text\ttext\na\tb\n", "names a column twice"),
        ("rows.tsv", b"text\tlabel\n", "holds no rows"),
        ("rows.csv", b'text,label\n"a"b,1\n', "line 2: "),
        ("rows.tsv", "text\nf\xfcr\n".encode("latin1"), "is not UTF-8 text"),
        ("rows.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("rows.json", b"[1, 2]", "row 1 is '1'"),
        ("rows.json", b'[{"a": 1}, {"a": {"b": 2}}]', "do not form columns"),
        ("rows.parquet", b"no parquet", "is not a Parquet file"),
        ("rows.txt", b"\n\n", "holds no rows"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PruningError, match=message):
        read_rows(tmp_path / name)


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(PruningError, match="There is no file"):
        read_rows(tmp_path / "rows.tsv")
