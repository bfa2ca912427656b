"""The study of static masks: which models it trains, what it measures of them, and what its tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import static_mask
import static_mask_cells
from static_mask_cells import DENSE, KINDS, LOCAL, MAGNITUDE, MOVEMENT, SCORE, TABLES, Cell, Settings, cells_of
from static_mask_plots import OVERALL, remaining_by_layer
from static_mask_tables import StudyResults, markdown_report
from study_cells import Request
from study_runs import EXAMPLES, Runner

from tests.examples.conftest import RunScript

REQUEST = Request("dev", None, Settings(), "")


def run_options(kind: str, remaining: float, task: str = "sst2") -> dict[str, Any]:
    return dict(Cell(task, kind, remaining, 0, REQUEST).run.options)


def test_every_model_of_the_issue_is_a_cell() -> None:
    cells = list(cells_of(REQUEST, 2, {}))
    assert len({cell.run.folder for cell in cells}) == len(cells)
    seeds: dict[tuple[str, str, float], int] = {}
    for cell in cells:
        key = (cell.task, cell.kind, cell.remaining)
        seeds[key] = seeds.get(key, 0) + 1
    assert set(seeds) == {
        (task, kind, level) for task, kinds in TABLES.items() for kind, levels in kinds.items() for level in levels
    }
    assert {kind for task, kind, level in seeds if (task, level) == ("sst2", 0.1)} == set(KINDS) - {DENSE}
    assert {key for key, count in seeds.items() if count == 2} == {
        key for key in seeds if key[0] == "sst2" and key[2] in (0.1, 1.0)
    }


def test_every_model_gets_the_same_steps() -> None:
    options = [cell.run.options for cell in cells_of(REQUEST, 1, {})]
    for name in ("max_steps", "per_device_train_batch_size", "warmup_steps", "train_sampling_strategy"):
        assert len({found[name] for found in options}) == 1


def test_static_masks_leave_nothing_to_the_optimizer_but_a_new_head() -> None:
    local, new_head = run_options(LOCAL, 0.1), run_options("local-trained-head", 0.1)
    assert (local["strategy"], local["masking"], local["sparsity"]) == ("static_mask", "local", 0.9)
    assert (local["learning_rate"], local["label_words"]) == (None, "0=terrible,1=great")
    assert (new_head["learning_rate"], new_head["label_words"]) == (Settings().head_rate, None)
    plain = run_options("local-unregularized", 0.1)
    assert {name for name in local if local[name] != plain[name]} == {"regularization"}
    assert plain["regularization"] == 0
    assert run_options(SCORE, 0.03, "qnli")["label_words"] == "entailment=yes,not_entailment=no"


def test_the_teacher_is_the_dense_model_of_the_same_seed() -> None:
    for seed in (0, 1):
        cell = Cell("sst2", "score-taught", 0.1, seed, REQUEST)
        assert cell.run.teacher == Cell("sst2", DENSE, 1.0, seed, REQUEST).run
    assert Cell("sst2", SCORE, 0.1, 0, REQUEST).run.teacher is None


def test_all_ways_prune_the_same_matrices() -> None:
    assert run_options(MAGNITUDE, 0.1)["target_modules"] == static_mask_cells.LAYERS
    assert "target_modules" not in run_options(MOVEMENT, 0.1)
    assert run_options(MOVEMENT, 0.1)["score_learning_rate"] == Settings().movement_score_rate


def measured(right: int, rows: int = 100, **more: Any) -> dict[str, Any]:
    signs = "1" * right + "0" * (rows - right)
    return {"right": signs, "fit": 0.9, "zeros": 0.5, "matrices": {"layer.0.a.weight": (1, 10)}, "heads": {}, **more}


def study() -> StudyResults:
    values = {
        (DENSE, 1.0): 80,
        (LOCAL, 0.8): 79,
        (LOCAL, 0.1): 70,
        (SCORE, 0.1): 72,
        (MOVEMENT, 0.1): 70,
        ("score-taught", 0.1): 71,
        ("local-unregularized", 0.1): 60,
    }
    return StudyResults([(Cell("sst2", *key, 0, REQUEST), measured(right)) for key, right in values.items()])


def rows_of(report: str) -> dict[tuple[str, str], list[str]]:
    """Cells of all tables by the first two of a row."""
    lines = [line for line in report.splitlines() if line.startswith("| ")]
    parts = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    return {(row[0], row[1]): row[2:] for row in parts}


def test_the_table_has_differences_to_the_dense_model_and_to_movement() -> None:
    rows = rows_of(markdown_report(study(), "dev"))
    assert rows["full fine-tuning", "100%"] == ["10.0%", "80.00", "", "", "90.00", "1"]
    found, accuracy, to_dense, to_movement, *_ = rows["static mask, score", "10%"]
    assert (found, accuracy) == ("10.0%", "72.00")
    assert to_dense.startswith("-8.00 ± ")
    assert to_movement.startswith("+2.00 ± ")
    assert rows["static mask, local", "80%"][3] == ""


def test_claims_are_judged_by_the_numbers() -> None:
    report = markdown_report(study(), "dev").split("claims")[1]
    verdicts = {claim: row[-1] for (claim, _), row in rows_of(report).items() if claim != "claim"}
    assert verdicts == {
        "SST-2, local: at least 1 point ahead of movement at 10%": "no",
        "SST-2, local: within 0.5 of full fine-tuning at 80%": "no",
        "SST-2, score: at least 1 point ahead of movement at 10%": "yes",
        "SST-2: score no worse than local at 10%": "yes",
        "SST-2, score: a teacher helps at 10%": "no",
        "SST-2, local: the regulariser helps at 10%": "yes",
    }


def test_seeds_are_averaged() -> None:
    pairs = [
        (
            Cell("sst2", LOCAL, 0.1, seed, REQUEST),
            measured(50 + 25 * seed, matrices={"layer.0.a.weight": (seed, 10)}, heads={"layer.0": [seed, 0.5]}),
        )
        for seed in (0, 1)
    ]
    entry = StudyResults(pairs).get("sst2", LOCAL, 0.1)
    assert entry is not None
    assert (entry.accuracy, entry.seeds, entry.kept) == (62.5, 2, 0.05)
    assert entry.heads["layer.0"].tolist() == [0.5, 0.5]


def test_what_remains_is_counted_by_layer_and_kind() -> None:
    matrices = {
        "layer.0.query.weight": (1, 4),
        "layer.0.dense.weight": (8, 16),
        "layer.1.query.weight": (2, 4),
        "layer.1.dense.weight": (0, 16),
    }
    entry = StudyResults([(Cell("sst2", LOCAL, 0.1, 0, REQUEST), measured(1, matrices=matrices))]).get(
        "sst2", LOCAL, 0.1
    )
    assert entry is not None
    shares = {kind: found.tolist() for kind, found in remaining_by_layer(entry).items()}
    assert shares == {OVERALL: [9 / 20, 2 / 20], "query": [1 / 4, 2 / 4], "dense": [1 / 2, 0]}


def test_cells_are_trained_measured_and_drawn(
    files: Path, run_script: RunScript, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def in_this_process(self: Runner, command: list[str], log: Path) -> None:
        commands.append(command)
        run_script(str(Path(command[1]).relative_to(EXAMPLES)), *command[2:])

    monkeypatch.setattr(Runner, "_execute", in_this_process)
    options = ["--models", files / "models", "--data", files / "data", "--cache", files / "cache", "--seeds", 1]
    only = ["--only", "task=sst2", "kind=dense,local,score-taught", "remaining=1.0,0.1"]
    settings = ["--set", "rows=16", "batch=4", "steps=6"]
    output = files / "out" / "static_mask.json"
    argv = [*map(str, (*options, *only, *settings, "--output", output))]
    static_mask.main(argv)
    report = capsys.readouterr().out
    rows = rows_of(report)
    assert len(commands) == 3
    for name in ("static mask, local", "static mask, score, with a teacher"):
        assert rows[name, "10%"][0] == "10.0%"
    assert "claims" not in report  # nothing to compare with
    [taught] = [command for command in commands if "--teacher_name_or_path" in command]
    teacher = Path(taught[taught.index("--teacher_name_or_path") + 1])
    assert teacher.name.startswith("sst2-dense-1.0")
    assert {path.name for path in output.parent.glob("*.png")} == {
        "static_mask_sst2_layers.png",
        "static_mask_sst2_heads.png",
    }
    cells = {cell["cell"]: cell["measured"] for cell in json.loads(output.read_text())["cells"]}
    local = cells["sst2-local-0.1-dev-seed0"]
    assert len(local["matrices"]) == 12
    assert all(abs(kept / whole - 0.1) < 0.5 / whole + 1e-9 for kept, whole in local["matrices"].values())
    assert [len(shares) for shares in local["heads"].values()] == [4, 4]
    assert np.mean(list(local["heads"].values())) == pytest.approx(0.9, abs=0.01)

    static_mask.main([*argv, "--finished"])
    assert rows_of(capsys.readouterr().out) == rows
    assert len(commands) == 3
