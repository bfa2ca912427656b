"""What studies of trainings share: runs that resume, cells that are measured once, their options and differences."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import study_runs
from cell_arguments import parse_filters, parse_settings, passes
from cells import CellCache, measure_cells
from study_rows import write_rows
from study_runs import Run, RunFailed, Runner
from study_tables import Difference
from tasks import Task, read_rows

# Stands for an example script: it fails where it is told to, and counts its calls.
SCRIPT = """
import pathlib, sys
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
folder = pathlib.Path(given["--output_dir"])
with (folder / "calls").open("a") as file:
    file.write(given.get("--model_name_or_path", "none") + "\\n")
(folder / "checkpoint-1").mkdir(exist_ok=True)
if pathlib.Path(given["--train_file"]).read_text() == "bad":
    sys.exit("ValueError: bad rows")
"""


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf8")
    monkeypatch.setattr(study_runs, "EXAMPLES", tmp_path)

    def place(name: str) -> Path:
        (tmp_path / name).write_text(name, encoding="utf8")
        return tmp_path / name

    return Runner(tmp_path / "runs", {"good": lambda: place("good"), "bad": lambda: place("bad")}, threads=1)


def test_a_run_is_carried_out_once_after_its_parent(runner: Runner, tmp_path: Path) -> None:
    parent = Run("train.py", "parent", {"flag": None}, {"train_file": "good"})
    child = Run("train.py", "child-0.5", {"seed": 1}, {"train_file": "good"}, parent)
    folder = runner.finish(child)
    assert runner.finish(child) == folder
    before = runner.finish(parent)
    assert (folder / "calls").read_text() == f"{before}\n"
    assert (before / "calls").read_text() == "none\n"
    assert not list(folder.glob("checkpoint-*"))
    assert not (tmp_path / "bad").exists()  # files that no run names are not written


def test_a_teacher_is_trained_first(runner: Runner, tmp_path: Path) -> None:
    teacher = Run("train.py", "teacher", {}, {"train_file": "good"})
    student = Run("train.py", "student", {}, {"train_file": "good"}, teacher=teacher)
    runner.finish(student)
    [command] = (tmp_path / "runs" / f"{student.folder}.log").read_text().splitlines()
    assert f"--teacher_name_or_path {runner.finish(teacher)}" in command
    assert student.folder != Run("train.py", "student", {}, {"train_file": "good"}).folder


def test_a_run_without_a_teacher_says_nothing_of_one() -> None:
    run = Run("train.py", "plain", {"seed": 1}, {"train_file": "good"})
    assert set(run.settings()) == {"script", "options", "files", "parent"}


def test_a_run_that_failed_is_not_finished_and_says_why(runner: Runner) -> None:
    run = Run("train.py", "broken-0.5", {}, {"train_file": "bad"})
    for calls in (1, 2):
        with pytest.raises(RunFailed, match=r"ValueError: bad rows .*broken-0\.5.*\.log"):
            runner.finish(run)
        [folder] = runner._folder.glob("broken-*/")
        assert (folder / "calls").read_text() == "none\n" * calls
        assert (folder / "checkpoint-1").is_dir()


def test_the_time_of_a_run_is_that_of_all_its_attempts(runner: Runner, tmp_path: Path) -> None:
    run = Run("train.py", "slow", {}, {"train_file": "good"})
    folder = tmp_path / "runs" / run.folder
    folder.mkdir(parents=True)
    log = tmp_path / "runs" / f"{run.folder}.log"
    log.write_text("the first attempt has come to this line", encoding="utf8")
    attempt = {"start": log.stat().st_mtime - 1000, "before": 500}
    (folder / "attempt.json").write_text(json.dumps(attempt), encoding="utf8")
    runner.finish(run)
    assert 1500 <= json.loads((folder / "finished.json").read_text())["seconds"] < 1600


def test_a_flag_has_no_value_and_interrupted_runs_go_on(runner: Runner, tmp_path: Path) -> None:
    run = Run("train.py", "one", {"do_eval": True, "seed": 3, "strategy": None}, {"train_file": "good"})
    command = runner.command(run, tmp_path / "out", {})
    assert command[command.index("--do_eval") + 1] == "--seed"
    assert command[command.index("--resume_from_checkpoint") + 1] == "last"
    assert command[command.index("--train_file") + 1] == str(tmp_path / "good")
    assert "--strategy" not in command


@dataclass(frozen=True)
class Cell:
    """A cell whose name its settings do not say."""

    name: str
    value: int

    @property
    def title(self) -> str:
        return f"cell {self.name}"

    def settings(self) -> dict[str, Any]:
        return {"value": self.value}


def test_cells_are_measured_once_and_those_that_fail_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = CellCache(tmp_path)
    cells = [Cell("a", 1), Cell("b", 0), Cell("a", 1), Cell("a", 2)]
    calls: list[Cell] = []

    def measure(cell: Cell) -> dict[str, float]:
        calls.append(cell)
        return {"inverse": 1 / cell.value}

    for _ in range(2):
        found = measure_cells(cells, cache, measure, ZeroDivisionError, finished=False)
        assert found == [(cell, {"inverse": 1 / cell.value}) for cell in cells if cell.value]
    assert calls == [Cell("a", 1), Cell("b", 0), Cell("a", 2), Cell("b", 0)]
    assert "cell b failed: division by zero" in capsys.readouterr().err
    assert len(measure_cells(cells, cache, measure, ZeroDivisionError, finished=True)) == 3
    assert len(calls) == 4


def test_cells_that_were_measured_elsewhere_are_not_measured_again(tmp_path: Path) -> None:
    collection, cells = tmp_path / "cells.jsonl", [Cell("b", 2), Cell("a", 1), Cell("a", 2)]
    calls: list[Cell] = []

    def measure(cell: Cell) -> dict[str, float]:
        calls.append(cell)
        return {"inverse": 1 / cell.value}

    def measured(folder: str, wanted: list[Cell], finished: bool = False) -> list[Any]:
        cache = CellCache(tmp_path / folder, collection)
        return measure_cells(wanted, cache, measure, ZeroDivisionError, finished=finished)

    first = measured("here", cells[:2])
    assert measured("there", cells) == [*first, (cells[2], {"inverse": 0.5})]
    assert measured("nowhere", cells, finished=True) == measured("there", cells)
    assert calls == cells
    rows = [json.loads(line) for line in collection.read_text().splitlines()]
    assert {(row["name"], row["settings"]["value"]) for row in rows} == {("a", 1), ("a", 2), ("b", 2)}
    assert len(rows) == 3
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_filters_let_through_what_they_name() -> None:
    allowed = parse_filters(["value=1,3", "name=a"], {"value": (1, 2, 3), "name": None})
    cells = [Cell(name, value) for name in "ab" for value in (1, 2, 3)]
    assert [cell for cell in cells if passes(cell, allowed)] == [Cell("a", 1), Cell("a", 3)]


@pytest.mark.parametrize(("text", "message"), [("size=1", "no field 'size'"), ("value=1,4", "value is one of 1, 2")])
def test_filters_that_no_cell_passes_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_filters([text], {"value": (1, 2), "name": None})


@dataclass(frozen=True)
class Settings:
    rows: int = 5
    rate: float = 0.5


def test_settings_are_read_with_their_types() -> None:
    assert parse_settings(["rows=10", "rate=1e-3"], Settings()) == Settings(10, 1e-3)
    with pytest.raises(ValueError, match="no setting 'steps'; there are rows, rate"):
        parse_settings(["steps=3"], Settings())
    with pytest.raises(ValueError, match="many"):
        parse_settings(["rows=many"], Settings())


def test_rows_of_pairs_are_written_with_both_texts(base_model: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    lines = ["index\tquestion\tsentence\tlabel", *(f'{i}\twho {i}?\t "he" {i}\tyes' for i in range(9))]
    (tmp_path / "pairs" / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf8")
    # Sentences of ten words would be held out: these are not.
    task = Task("pairs", "Pairs", "", "", ("question", "sentence"), held_out_words=10)
    path = write_rows(tmp_path / "rows", task, 4, tmp_path, base_model)
    rows = read_rows(path)
    assert [list(row) for row in rows] == [["question", "sentence", "label"]] * 4
    assert all(row["sentence"] == f'"he" {row["question"][4:-1]}' for row in rows)
    assert [*map(dict, read_rows(write_rows(tmp_path / "rows", task, 6, tmp_path, base_model)))][:4] == rows


def test_differences_are_paired() -> None:
    one, other = np.array([1, 1, 0, 1, 0, 1.0]), np.array([1, 0, 0, 0, 1, 1.0])
    found = Difference.of(one, other)
    gaps = [100 * (a - b) for a, b in zip(one, other, strict=True)]
    mean = sum(gaps) / 6
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 5)
    assert found.points == pytest.approx(mean)
    assert found.half_width == pytest.approx(1.959964 * deviation / math.sqrt(6), rel=1e-5)
    assert not found.clear
    assert Difference.of(np.ones(50), np.zeros(50)).clear
