from __future__ import annotations

import math

import pytest
from rich.table import Table

from hf_prune.commands.console import note, quiet_output, show, show_json, terminal_width


def test_only_what_is_shown_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_output():
        print("from some library")  # noqa: T201
        show("the result")
        note("a remark about [brackets]")
    print("afterwards")  # noqa: T201
    written = capsys.readouterr()
    assert written.out == "the result\nafterwards\n"
    assert written.err == "from some library\na remark about [brackets]\n"


def test_a_remark_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    note("Error: " + "long " * 100)
    assert capsys.readouterr().err.count("\n") == 1


def test_tables_in_a_file_are_wider_than_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert terminal_width() == 120
    table = Table("header")
    table.add_row("x" * 100)
    show(table)
    assert "x" * 100 in capsys.readouterr().out


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"loss": math.nan, "best": [math.inf, (-math.inf, 0.5)], "name": "NaN", "of": {"it": 1}})
    assert capsys.readouterr().out == '{"loss": null, "best": [null, [null, 0.5]], "name": "NaN", "of": {"it": 1}}\n'
