"""The accuracy benchmarks: which cells they have, what is shared between them, and what their tables say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accuracy
import accuracy_floor
import pytest
import tasks
import torch
from accuracy_cells import ABLATIONS, FIELDS, FULL, Cell, Request, cells_of, trained
from accuracy_modes import MODES, TARGETS
from accuracy_results import AccuracyResults
from accuracy_tables import markdown_report
from accuracy_training import Training
from cells import CellCache
from shared_statistics import SharedStatistics, highest_scores
from transformers import AutoTokenizer, BertForSequenceClassification

from hf_prune import FisherPruningConfig, describe_model, prune_model
from hf_prune.pruning_run import Evaluation, PruningRun
from tests.cli.rows import WORDS, sentence, write_tsv
from tests.examples.test_static_mask import rows_of
from tests.small_models import Batch, case
from tests.witness import Witness

REQUEST = Request("dev", None, None, {}, "")
LABELS = {"sst2": {"0": 0, "1": 1}, "qnli": {"entailment": 0, "not_entailment": 1}}
SHORT = {"round_to": 1, "batch_size": 4, "latency_batch_size": 1}


def cell(ablation: str = FULL, recovery: str = "weights", flops: float = 0.5, **more: Any) -> Cell:
    request = Request("dev", None, None, more.pop("settings", {}), "", **more.pop("training", {}))
    return Cell(more.get("task", "sst2"), flops, recovery, ablation, more.get("seed", 0), request)


# --- which cells ---


def test_every_mode_is_measured_at_every_small_budget() -> None:
    found = {(each.task, each.ablation, each.recovery, each.flops, each.seed) for each in cells_of(REQUEST, 3, {})}
    for mode in MODES:
        for name, flops, seeds in ((mode.ablation, TARGETS, 3), (trained(mode.ablation), (0.3, 0.2), 1)):
            for task in tasks.TASKS:
                for budget in flops:
                    at = {key[4] for key in found if key[:4] == (task, name, mode.recovery, budget)}
                    assert at == set(range(seeds)), mode
    assert len([key for key in found if ABLATIONS[key[1]].trained]) == 2 * 2 * len(MODES)


def test_cells_that_are_measured_alike_are_measured_once() -> None:
    def keys(ablation: str, recovery: str, **more: Any) -> str:
        each = cell(ablation, recovery, 0.4, **more)
        return CellCache(Path()).path(each.name, each.settings()).name

    assert keys(FULL, "mask_tuning") == keys("rearrangement", "mask_tuning") != keys("no_rearrangement", "mask_tuning")
    assert keys(FULL, "weights") != keys("rearrangement", "weights")
    assert keys(FULL, "weights") == keys(FULL, "weights", training={"training": Training(rate=1e-3)})
    rates = [keys(trained(FULL), "weights", training={"training": Training(rate=rate)}) for rate in (1e-3, 1e-4)]
    assert len({*rates, keys(FULL, "weights")}) == 3


def test_keys_are_those_of_the_first_cells() -> None:
    """Finished tables stay finished, whatever settings come and whatever the defaults are."""
    first = {
        "strategy": "fisher", "target_modules": None, "exclude_modules": None, "flops": 0.5, "params": None,
        "latency": None, "latency_ms": None, "sequence_length": None, "latency_batch_size": 32, "batch_size": 32,
        "round_to": 8, "uniform": False, "importance": "fisher", "rearrange": None, "recovery": "weights",
        "solver": "direct", "damp": 1.0, "refit_examples": 1024,
    }  # fmt: skip
    expected = {"task": "sst2", "split": "dev", "max_eval": None, "examples": 2048, "seed": 0, "searched": True}
    assert cell().settings() == expected | {"config": first, "tag": ""}
    assert cell("iterative").settings()["config"] == first | {"importance": "after_refit", "iterative": True}
    assert cell(settings={"labels": "model"}).settings()["config"] == first | {"labels": "model"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "blur=3"], "blur"),
        (["--set", "damp=-1"], "damp=-1"),
        (["--set", "damp=high"], "Expecting value"),
        (["--training", "speed=1"], "no setting 'speed'"),
        (["--training", "dropout=1"], "'1' must be true or false"),
        (["--only", "mode=paper"], "no field 'mode'"),
    ],
)
def test_what_cannot_be_asked_for(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        accuracy.main(["--models", "models", "--data", "data", *options])
    assert message in capsys.readouterr().err


# --- what cells share ---


@pytest.fixture
def batches() -> list[Batch]:
    item = case("bert", "classification")
    return [item.batch(seed) for seed in range(2)]


def test_cuts_from_shared_statistics_are_those_of_runs_of_their_own(batches: list[Batch]) -> None:
    model = case("bert", "classification").model()
    witness = Witness(model)
    run = PruningRun.of(model, FisherPruningConfig(flops=0.5, **SHORT), batches, Evaluation(), None)
    shared = SharedStatistics(run)
    cells = [cell(mode.ablation, mode.recovery, settings=SHORT) for mode in MODES]
    # Those that are trained find the statistics that were measured for another budget.
    cells += [cell(trained(mode.ablation), mode.recovery, 0.3, settings=SHORT) for mode in MODES]
    for each in cells:
        config = each.config
        cut, _ = shared.cut(config)
        alone = prune_model(case("bert", "classification").model(), config, batches)
        assert cut.plan == alone.plan, each.title
        with run.applied(config, cut, timed=False) as made:
            for name, value in model.state_dict().items():
                assert torch.equal(value, alone.model.state_dict()[name]), (each.title, name)
        made.log.roll_back()
    witness.check()


def test_what_is_measured_once_counts_for_every_cut(batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    model = case("bert", "classification").model()
    run = PruningRun.of(model, FisherPruningConfig(flops=0.5, **SHORT), batches, Evaluation(), None)
    shared = SharedStatistics(run)
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("shared_statistics.time", SimpleNamespace(perf_counter=lambda: next(now)))
    configs = [
        FisherPruningConfig(flops=flops, labels=labels, recovery=recovery, **SHORT)
        for labels, recovery, flops in (
            ("data", "weights", 0.5),  # 10 to measure, 10 to choose and repair
            ("data", "weights", 0.3),
            ("data", "none", 0.5),  # rearranges, so it needs more
            ("data", "mask_tuning", 0.5),
            ("model", "weights", 0.5),
        )
    ]
    assert [shared.cut(config)[1] for config in configs] == [20] * 5
    assert next(now) == 10 * (3 * 2 + 5 * 2)  # the clock was read twice for each of three measurements and five cuts


def test_without_search_the_same_share_of_both_kinds_stays(batches: list[Batch]) -> None:
    model = case("bert", "classification").model()
    anatomy = describe_model(model)
    generator = torch.Generator().manual_seed(0)
    scores = {block.key: torch.rand(block.units, generator=generator) for block in anatomy.blocks}
    masks = highest_scores(anatomy, scores, 0.5)
    for blocks in (anatomy.attentions, anatomy.feed_forwards):
        kept = torch.cat([masks[block.key] for block in blocks])
        values = torch.cat([scores[block.key] for block in blocks])
        assert int(kept.sum()) == len(kept) // 2
        assert values[kept].min() > values[~kept].max()
    run = PruningRun.of(model, FisherPruningConfig(flops=0.5, **SHORT), batches, Evaluation(), None)
    for rearrange in (False, True):
        config = FisherPruningConfig(flops=0.5, rearrange=rearrange, **SHORT)
        plan = SharedStatistics(run).cut(config, searched=False)[0].plan
        for blocks in (anatomy.attentions, anatomy.feed_forwards):
            assert sum(map(plan.count, blocks)) == sum(block.units for block in blocks) // 2


# --- tables ---


def measured(right: int, seconds: float | None = None, **more: Any) -> dict[str, Any]:
    times = {} if seconds is None else {"seconds": seconds}
    return {"rows": 100, "dense_correct": 90, "correct": right, **times, **more}


def results() -> AccuracyResults:
    pairs = []
    for task, lost in (("sst2", 0), ("qnli", 1)):
        for seed in (0, 1):
            for flops, right in ((0.5, 89), (0.4, 87)):
                pairs.append((cell(FULL, "weights", flops, task=task, seed=seed), measured(right - lost)))
                pairs.append(
                    (cell("after_refit", "weights", flops, task=task, seed=seed), measured(90 - lost, 10.0 + 2 * lost))
                )
        pairs.append((cell(FULL, "mask_tuning", 0.4, task=task), measured(80, 30.0)))
        after = cell("after_refit", flops=0.3, task=task), cell(trained("after_refit"), flops=0.3, task=task)
        pairs.append((after[0], measured(87 - lost, 10.0)))
        pairs.append((cell("after_refit", flops=0.3, task=task, seed=1), measured(85, 10.0)))
        pairs.append((after[1], measured(89, 10.0, training_seconds=100.0)))
    pairs.append((cell("blended", flops=0.5), measured(88, 20.0)))  # of one task only
    return AccuracyResults(pairs)


def test_modes_are_told_by_what_they_lose_and_how_long_they_take() -> None:
    report = markdown_report(results(), "dev")
    mean = report.split("mean loss over the tasks in points\n")[1].split("\n## ")[0]
    table = {line.split(" | ")[0].strip("| "): line.split("|")[2:-1] for line in mean.splitlines() if "|" in line}
    cells = {title: [text.strip() for text in row] for title, row in table.items()}
    assert cells["Fisher scores"] == ["1.50 ± 0.00", "3.50 ± 0.00", "–", "–", "–"]
    assert cells["scores after the refit (the default)"] == ["0.50 ± 0.00", "0.50 ± 0.00", "4.25 ± 9.53", "–", "11"]
    assert cells["the paper: Fisher scores, rearranged, mask tuning"] == ["–", "10.00", "–", "–", "30"]
    assert cells["target"] == ["≤ 0.5", "≤ 1.0", "≤ 2.0", "≤ 5.0", ""]
    assert ABLATIONS["blended"].title not in cells
    reached = mean.splitlines()[-1]
    assert reached.startswith(
        "Targets reached at: the paper: Fisher scores, rearranged, mask tuning: none; Fisher scores:"
    )
    assert reached.endswith("Fisher scores: none; scores after the refit (the default): 0.5, 0.4.")
    sst2 = report.split("otherwise: SST-2, dev\n")[1]
    assert ABLATIONS["blended"].title in sst2
    assert " 88.00 (-2.00) |" in sst2


def test_training_is_told_beside_what_was_trained() -> None:
    report = markdown_report(results(), "dev")
    means = report.split("after each mode: mean loss over the tasks in points\n\n")[1].split("\n\n")[0].splitlines()
    _, _, only = [[text.strip() for text in line.split("|")[1:-1]] for line in means]
    # Of the sample that was trained, without the other one.
    assert only == ["scores after the refit (the default)", "3.50", "1.00", "–", "–", "100"]
    sst2 = report.split("after each mode: SST-2, dev\n\n")[1].split("\n\n")[0]
    assert "| 87.00 (-3.00) | 89.00 (-1.00) |" in sst2


def test_there_is_no_table_of_modes_without_any() -> None:
    found = AccuracyResults([(cell(FULL, recovery, 0.5), measured(85)) for recovery in ("none", "weights")])
    report = markdown_report(found, "dev")
    assert "Modes" not in report
    assert "training" not in report


# --- the whole, on tiny models ---


@pytest.fixture
def files(base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models and data as the scripts want them."""
    monkeypatch.setattr(tasks, "HELD_OUT_ROWS", 8)
    texts = [f"{sentence(index)} {' '.join(WORDS[index % 5 :][:9])}" for index in range(48)]
    columns = {"sst2": {"sentence": texts}, "qnli": {"question": list(map(sentence, range(48))), "sentence": texts}}
    for name, labels in LABELS.items():
        torch.manual_seed(0)
        model = BertForSequenceClassification.from_pretrained(
            base_model, label2id=labels, id2label={label: text for text, label in labels.items()}
        )
        with torch.no_grad():
            for parameter in model.classifier.parameters():
                parameter.normal_()
        folder = tmp_path / "models" / f"minilm-{name}"
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base_model).save_pretrained(folder)
        (tmp_path / "data" / name).mkdir(parents=True)
        for split in ("train", "dev"):
            write_tsv(tmp_path / "data" / name / f"{split}.tsv", columns[name] | {"label": [*labels] * 24})
    return tmp_path


def common(files: Path) -> list[str]:
    sizes = ["--max-calibration", "24", "--max-eval", "16", "--seeds", "1"]
    return ["--models", str(files / "models"), "--data", str(files / "data"), "--cache", str(files / "cache"), *sizes]


def test_cells_are_measured_once_trained_and_shown(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = files / "out" / "accuracy.json"
    options = [*common(files), "--set", "batch_size=8", "round_to=1", "--output", str(output)]
    options += ["--only", "flops=0.3", "ablation=full,after_refit_model_labels,full_trained"]
    options += ["--training", "rows=16", "batch=4", "rate=0.01"]
    accuracy.main(options)
    report = capsys.readouterr().out
    assert report.startswith("## all-MiniLM-L6-v2 fine-tuned on SST-2, dev")
    assert "train_runtime" not in report
    assert (files / "out" / "accuracy.png").is_file()
    raw = json.loads(output.read_text())["cells"]
    # Of two tasks: three recoveries, another mode, and a training after two repairs.
    assert len(raw) == 2 * 6
    for each in raw:
        found = each["measured"]
        assert found["flops_kept"] <= 0.3
        assert (found["rows"], found["sequence_length"] > 1, found["seconds"] > 0) == (16, True, True)
        assert ("training_seconds" in found) == (each["ablation"] == "full_trained") == ("training" in each)
    by_ablation = {
        (each["task"], each["ablation"]): each["measured"] for each in raw if each["config"]["recovery"] == "weights"
    }
    for task in LABELS:
        full, taught = by_ablation[task, FULL], by_ablation[task, "full_trained"]
        assert (full["heads"], full["filters"]) == (taught["heads"], taught["filters"])

    monkeypatch.setattr(accuracy.TaskRuns, "measure", None)
    accuracy.main(options)
    assert capsys.readouterr().out == report
    with pytest.raises(SystemExit, match="nothing was measured yet"):
        accuracy.main([*options, "--held-out", "--finished"])


def test_a_cell_is_what_pruning_a_model_alone_gives(files: Path) -> None:
    arguments, [each] = accuracy.parse_arguments(
        [*common(files), "--set", "batch_size=8", "round_to=1", "--held-out", "--only", "task=qnli",
         "flops=0.5", "ablation=blended"]
    )  # fmt: skip
    run = accuracy.TaskRun("qnli", arguments, "held_out")
    found = run.measure(each)
    again = run.measure(each)
    alone = copy.deepcopy(run._model)
    rows = run._rows.calibration(0, 24)
    report = prune_model(alone, each.config, rows, data_collator=run._collator).report
    assert found["flops_kept"] == report.pruned.flops / report.dense.flops
    evaluation = run._rows.evaluation("held_out", 16)
    right = 0
    with torch.no_grad():
        for row in evaluation:
            logits = alone(input_ids=torch.tensor([row["input_ids"]])).logits
            right += int(logits.argmax() == row["labels"])
    assert found["correct"] == again["correct"] == right
    assert found["rows"] == len(evaluation) == 8


def test_the_smallest_model_that_keeps_the_accuracy(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = files / "floor.json"
    options = [*common(files), "--set", "batch_size=8", "round_to=1", 'recovery="none"']
    accuracy_floor.main([*options, "--only", "drop=0.02", "--output", str(output)])
    report = capsys.readouterr().out
    raw = json.loads(output.read_text())["cells"]
    assert [each["task"] for each in raw] == ["sst2", "qnli"]
    for each in raw:
        found = each["measured"]
        if "refused" in found:
            assert "max_metric_drop=0.02 is out of reach" in found["refused"]
            assert found["refused"] in report
        else:
            assert found["pruned"] >= found["dense"] - 0.02
            assert [found["flops_kept"], found["pruned"]] in found["tried"]
    assert {cells for cells, _ in rows_of(report)} >= {"SST-2", "QNLI"}


def test_a_floor_that_no_smaller_model_keeps_is_explained(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([1.0] + [0.5] * 20)
    monkeypatch.setattr(accuracy_floor, "classification_accuracy", lambda _: {"accuracy": next(accuracies)})
    options = [*common(files), "--set", "batch_size=8", "round_to=1", 'recovery="none"']
    accuracy_floor.main([*options, "--only", "drop=0.01", "task=sst2"])
    report = capsys.readouterr().out
    assert " none |" in report
    assert "sst2-dev-drop0.01-seed0: max_metric_drop=0.01 is out of reach: the dense accuracy is 1.0000" in report


def test_filters_name_what_there_is() -> None:
    assert set(FIELDS) == {"task", "flops", "recovery", "ablation", "seed"}
    assert {each.drop for each in accuracy_floor._every_cell(REQUEST, 1)} == {0.005, 0.01, 0.02}
