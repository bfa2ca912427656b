"""The study of head pruning: which models it makes, what it measures of them, and what its tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import head_pruning
import numpy as np
import pytest
from head_pruning_cells import (
    CUT,
    HISP,
    KINDS,
    L0,
    NONE,
    RANDOM,
    RETRAINED,
    SINGLE_SHOT,
    TABLES,
    TRAINING,
    Cell,
    Settings,
    cells_of,
    meta_training,
)
from head_pruning_tables import StudyResults, markdown_report
from head_pruning_tasks import TASKS, HeadRows, HeadTask
from study_cells import Request
from study_runs import EXAMPLES, Runner

from hf_prune import MetaPruner
from tests.cli.rows import WORDS, sentence, write_tsv
from tests.examples.conftest import ROWS, RunScript
from tests.examples.test_static_mask import rows_of

REQUEST = Request("dev", None, Settings(), "")


def cell(kind: str, heads: float = 0.5, task: str = "qnli", seed: int = 0, **settings: Any) -> Cell:
    return Cell(task, kind, heads, seed, Request("dev", None, Settings(**settings), ""))


# --- which models ---


def test_every_model_of_the_study_is_a_cell() -> None:
    cells = list(cells_of(REQUEST, 3, {}))
    assert len({each.name for each in cells}) == len({each.run.folder for each in cells}) == len(cells)
    seeds: dict[tuple[str, str, float], int] = {}
    for each in cells:
        key = (each.task, each.kind, each.heads)
        seeds[key] = seeds.get(key, 0) + 1
    assert set(seeds) == {
        (task, kind, heads) for task, kinds in TABLES.items() for kind, levels in kinds.items() for heads in levels
    }
    assert {kind for task, kind, _ in seeds if task == "mrpc"} == set(KINDS)
    assert all(count == 3 for (_, kind, _), count in seeds.items() if kind == RANDOM)
    assert seeds["qnli", SINGLE_SHOT, 0.5] == 3
    assert seeds["qnli", SINGLE_SHOT, 0.25] == seeds["stsb", SINGLE_SHOT, 0.5] == 1


def test_every_fine_tuning_has_the_same_steps() -> None:
    runs = [each.run for each in cells_of(REQUEST, 1, {})]
    options = [run.options for run in runs if run.script == TRAINING]
    for name in ("max_steps", "per_device_train_batch_size", "learning_rate", "train_sampling_strategy"):
        assert len({found[name] for found in options}) == 1


def test_what_is_removed_before_comes_from_the_model_that_all_begin_with() -> None:
    for kind, strategy in ((SINGLE_SHOT, "single_shot"), (RANDOM, "random")):
        run = cell(kind).run
        assert run.parent is not None
        assert (run.script, run.parent.script, run.parent.parent) == (TRAINING, CUT, None)
        assert (run.parent.options["strategy"], run.parent.options["heads"]) == (strategy, 0.5)
        assert run.parent.files["model_name_or_path"] == "minilm"
        assert "model_name_or_path" not in run.files
    assert [cell(SINGLE_SHOT, task=task).run.parent.options["input_type"] for task in TASKS] == [  # type: ignore[union-attr]
        "single",
        "pair",
        "pair",
    ]


def test_head_importance_is_that_of_the_model_that_was_fine_tuned_with_the_same_seed() -> None:
    for seed in (0, 1):
        pruned, retrained = cell(HISP, seed=seed).run, cell(RETRAINED, seed=seed).run
        assert pruned.script == CUT
        assert pruned.parent == cell(NONE, 1.0, seed=seed).run
        assert retrained.script == TRAINING
        assert retrained.parent is not None
        assert retrained.parent.folder == pruned.folder
    gates = cell(L0).run
    assert (gates.options["strategy"], gates.options["heads"], gates.parent) == ("l0", 0.5, None)


def test_another_pruner_makes_other_cuts_and_leaves_the_rest() -> None:
    for kind in KINDS:
        folders = [cell(kind, episodes=count).run.folder for count in (600, 400)]
        assert (folders[0] != folders[1]) == (kind == SINGLE_SHOT)
    assert "qnli" not in json.dumps(meta_training(Settings()).settings())


# --- rows ---


def test_held_out_rows_and_their_copies_are_never_trained_on(tmp_path: Path) -> None:
    texts = [f"text {index // 2}" for index in range(60)]  # every text twice
    (tmp_path / "pairs").mkdir()
    columns = {"Quality": ["0", "1"] * 30, "#1 String": texts, "#2 String": [f"{text} again" for text in texts]}
    write_tsv(tmp_path / "pairs" / "train.tsv", columns)
    rows = HeadRows(HeadTask("pairs", "Pairs", ("#1 String", "#2 String"), "Quality"), tmp_path)
    assert len(rows.held_out) == 6
    trained = rows.training(1000)
    assert not {rows.texts(row) for row in trained} & {rows.texts(row) for row in rows.held_out}
    assert rows.training(10) == trained[:10]
    assert list(trained[0]) == ["sentence1", "sentence2", "label"]
    assert trained[0]["sentence2"] == trained[0]["sentence1"] + " again"


# --- tables ---


def measured(right: int, rows: int = 100, **more: Any) -> dict[str, Any]:
    signs = "1" * right + "0" * (rows - right)
    return {"right": signs, "kept": 0.5, "seconds": 60.0, "peak_bytes": 2**30, **more}


def similarity(value: float) -> dict[str, Any]:
    return {"spearman": value - 0.1, "pearson": value, "pairs": 1500, "kept": 0.5}


def study() -> StudyResults:
    pruner = {"seconds": 1500.0, "episodes": 600, "losses": [0.5, 0.1, 0.2]}
    pairs = []
    for task, single_shot, retrained in (("sst2", 80, 80), ("mrpc", 70, 72), ("qnli", 75, 73)):
        pairs.append((cell(NONE, 1.0, task), measured(85, kept=1.0, seconds=75.0)))
        pairs.append((cell(SINGLE_SHOT, 0.5, task), measured(single_shot, pruner=pruner)))
        pairs.append((cell(RETRAINED, 0.5, task), measured(retrained)))
        pairs += [(cell(RANDOM, 0.5, task, seed), measured(value)) for seed, value in enumerate((70, 74))]
    pairs.append((cell(SINGLE_SHOT, 0.25), measured(60, pruner=pruner, kept=0.25)))
    pairs.append((cell(RANDOM, 0.25), measured(61, kept=0.25)))
    pairs.append((cell(SINGLE_SHOT, 0.5, "stsb"), similarity(0.7)))
    pairs += [(cell(RANDOM, 0.5, "stsb", seed), similarity(value)) for seed, value in enumerate((0.5, 0.7))]
    return StudyResults(pairs)


def test_the_tables_hold_differences_costs_and_correlations() -> None:
    report = markdown_report(study(), "dev")
    assert "600 episodes in 25.0 minutes; validation loss 0.5 before, 0.1 at best" in report
    rows = rows_of(report.split("## QNLI")[1].split("## STS-B")[0])
    accuracy, to_none, to_random, seconds, peak, seeds = rows[KINDS[SINGLE_SHOT], "50%"]
    assert (accuracy, seconds, peak, seeds) == ("75.00", "60", "1,024", "1")
    assert to_none.startswith("-10.00 ± ")
    assert to_random.startswith("+3.00 ± ")
    assert rows[KINDS[RANDOM], "50%"][:3:2] == ["72.00", ""]
    correlations = rows_of(report.split("## STS-B")[1])
    assert correlations[KINDS[SINGLE_SHOT], "50%"] == ["60.00", "70.00", "1"]
    assert correlations[KINDS[RANDOM], "50%"][1].startswith("60.00 ± 127.0")


def test_claims_are_judged_by_the_numbers() -> None:
    report = markdown_report(study(), "dev").split("claims")[1]
    verdicts = {claim: (value, *rest) for (claim, value), rest in rows_of(report).items() if claim != "claim"}
    assert {claim: found[-1] for claim, found in verdicts.items()} == {
        "the pruner is trained within 20 minutes": "no",
        "mean of the tasks, 50% of the heads: ahead of the mean of random": "yes",
        "SST-2, 50% of the heads: ahead of the mean of random": "yes",
        "MRPC, 50% of the heads: ahead of the mean of random": "no",
        "QNLI, 50% of the heads: ahead of the mean of random": "yes",
        "mean of the tasks, 50% of the heads: within 0.5 point of HISP-retrain": "yes",
        "SST-2, 50% of the heads: within 0.5 point of HISP-retrain": "yes",
        "MRPC, 50% of the heads: within 0.5 point of HISP-retrain": "no",
        "QNLI, 50% of the heads: within 0.5 point of HISP-retrain": "yes",
        "QNLI, 25% of the heads: ahead of the mean of random": "no",
        "QNLI, 50% of the heads: fine-tuning takes less time": "yes",
        "QNLI, 50% of the heads: fine-tuning takes less memory": "no",
        "STS-B, 50% of the heads: Pearson above the mean of random": "yes",
    }
    assert verdicts["mean of the tasks, 50% of the heads: ahead of the mean of random"][0].startswith("+3.00 ± ")
    assert verdicts["QNLI, 50% of the heads: fine-tuning takes less time"][0] == "0.80 ×"


def test_the_mean_over_the_tasks_is_that_of_independent_differences() -> None:
    results = study()
    alone = [results.between(task, SINGLE_SHOT, RANDOM, 0.5) for task in TASKS]
    mean = results.mean_between(SINGLE_SHOT, RANDOM, 0.5)
    assert mean is not None
    assert mean.points == pytest.approx(np.mean([each.points for each in alone if each is not None]))
    widths = [each.half_width for each in alone if each is not None]
    assert mean.half_width == pytest.approx(np.sqrt(sum(width**2 for width in widths)) / 3)
    assert results.mean_between(SINGLE_SHOT, RANDOM, 0.25) is None  # only of one task


# --- the whole, on a tiny model ---


@pytest.fixture
def files(base_model: Path, tmp_path: Path) -> Path:
    """Models and data as the script wants them, with the tiny model as the base."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "minilm-base").symlink_to(base_model)
    first, second = list(map(sentence, range(2 * ROWS))), list(map(sentence, range(1, 2 * ROWS + 1)))
    labels, scores = ["0", "1"] * ROWS, [f"{index % 5}.5" for index in range(2 * ROWS)]
    sets: dict[str, dict[str, list[str]]] = {
        "sst2": {"sentence": [f"{text} {' '.join(WORDS[:9])}" for text in first], "label": labels},
        "trec": {"label": labels, "sentence": first},
        "stsb": {"score": scores, "sentence1": first, "sentence2": second},
        "mrpc": {"Quality": labels, "#1 String": first, "#2 String": second},
        "qnli": {"question": first, "sentence": second, "label": ["entailment", "not_entailment"] * ROWS},
    }
    for name, columns in sets.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for split in ("train", "dev"):
            write_tsv(tmp_path / "data" / name / f"{split}.tsv", columns)
    return tmp_path


def test_models_are_made_measured_and_drawn(
    files: Path, run_script: RunScript, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts: list[str] = []

    def in_this_process(self: Runner, command: list[str], log: Path) -> None:
        scripts.append(Path(command[1]).name)
        run_script(str(Path(command[1]).relative_to(EXAMPLES)), *command[2:])

    monkeypatch.setattr(Runner, "_execute", in_this_process)
    options = ["--models", files / "models", "--data", files / "data", "--cache", files / "cache", "--seeds", 1]
    only = ["--only", "task=qnli,stsb", "heads=1.0,0.5"]
    settings = ["rows=16", "batch=4", "steps=4", "scored=8", "episodes=2", "episodes_per_update=1"]
    settings += ["episode_examples=4", "episode_scored=2", "validation_episodes=1"]
    output = files / "out" / "head_pruning.json"
    argv = [*map(str, (*options, *only, "--set", *settings, "--output", output))]
    head_pruning.main(argv)
    report = capsys.readouterr().out
    # Cuts: single-shot and at random for both tasks, HISP once for two kinds, and STS-B's model that is whole.
    counts = {name: scripts.count(name) for name in sorted(set(scripts))}
    assert counts == {"head_pruning_cut.py": 6, "head_pruning_training.py": 5, "train_meta_pruner.py": 1}
    results = json.loads(output.read_text())
    kept = {(entry["task"], entry["kind"]): entry["kept"] for entry in results["entries"]}
    assert kept == {("qnli", kind): 1.0 if kind == NONE else 0.5 for kind in KINDS} | {
        ("stsb", kind): 1.0 if kind == NONE else 0.5 for kind in (NONE, SINGLE_SHOT, RANDOM)
    }
    by_kind = {entry["kind"]: entry for entry in results["entries"] if entry["task"] == "qnli"}
    assert by_kind[HISP]["seconds"] == by_kind[NONE]["seconds"] < by_kind[RETRAINED]["seconds"]
    assert all(entry["peak_bytes"] >= 0 for entry in by_kind.values())
    assert results["pruner"]["episodes"] == 2
    [pruner] = (files / "cache" / "runs").glob("pruner-*/")
    assert MetaPruner.from_pretrained(pruner).num_parameters() == 178_784
    assert {path.name for path in output.parent.glob("*.png")} == {"head_pruning.png", "head_pruning_attention.png"}

    head_pruning.main([*argv[: argv.index("--output")], "--finished"])
    assert report.endswith(capsys.readouterr().out)
    assert len(scripts) == 12
