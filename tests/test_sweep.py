"""`sweep`: every point is what a run of its own makes, from statistics measured once, and the model stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from hf_prune import (
    FisherPruningConfig,
    HeadImportancePruningConfig,
    InfeasibleBudgetError,
    LayerDropPruningConfig,
    MagnitudePruningConfig,
    PruningConfig,
    PruningError,
    RandomPruningConfig,
    Sweep,
    prune_model,
    pruning_run,
    register_strategy,
    sweep,
)
from hf_prune import config as config_module
from hf_prune.recovery import reconstruction
from hf_prune.scores import gradient_rows
from tests.conformance.plans import difference, run
from tests.failing import Failing
from tests.small_models import Batch, case
from tests.witness import Witness

BERT = case("bert", "classification")
BUDGETS = (0.3, 0.7, 0.5)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def config(**settings: Any) -> FisherPruningConfig:
    return FisherPruningConfig(**{"flops": 1.0, "latency_batch_size": 2, "batch_size": 4} | settings)


@pytest.mark.parametrize(
    ("settings", "budgets"),
    [
        (config(), BUDGETS),
        (config(params=0.5, flops=None, recovery="mask_tuning"), (0.4, 0.6)),
        (HeadImportancePruningConfig(heads=1.0, iterations=2), (0.25, 0.75)),
        (LayerDropPruningConfig(layers=3, which="score"), (2, 1)),
        (MagnitudePruningConfig(flops=1.0), (0.5, 0.3)),
        (RandomPruningConfig(heads=1.0), (0.5, 0.25)),
    ],
    ids=lambda value: getattr(value, "strategy", ""),
)
def test_points_are_what_separate_runs_make(settings: PruningConfig, budgets: tuple[float, ...], rows: Dataset) -> None:
    model = BERT.model().train()
    witness = Witness(model)
    found = sweep(model, settings, rows, budgets, eval_dataset=rows, compute_metrics=accuracy)
    witness.check()
    assert [point.budget for point in found.points] == sorted(budgets, reverse=True)
    for index, point in enumerate(found.points):
        alone = prune_model(BERT.model(), point.config, rows, eval_dataset=rows, compute_metrics=accuracy)
        result = found.result(index)
        assert result.plan == alone.plan
        assert result.config == alone.config
        assert result.report.metrics == alone.report.metrics
        assert result.report.pruned.parameters == alone.report.pruned.parameters == result.model.num_parameters()
        assert result.report.blocks == alone.report.blocks
        assert result.report.notes == alone.report.notes
        assert result.model.config.pruning == alone.model.config.pruning
        weights = alone.model.state_dict()
        assert weights.keys() == result.model.state_dict().keys()
        for name, value in result.model.state_dict().items():
            assert torch.equal(value, weights[name]), name
    witness.check()


@pytest.fixture
def measured(rows: Dataset) -> Sweep:
    return sweep(BERT.model(), config(), rows, BUDGETS, eval_dataset=rows, compute_metrics=accuracy, latency=True)


def test_a_point_is_saved_without_starting_over(
    measured: Sweep, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "find_steps", Failing(reconstruction.find_steps, 0, AssertionError))
    witness = Witness(measured.run.model)
    measured.save_pretrained(2, tmp_path / "small", card={"license": "mit"})
    witness.check()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    copied = measured.result(2).model
    assert difference(run(loaded, batches[0]), run(copied, batches[0])) == 0
    assert loaded.num_parameters() == measured.points[2].report.pruned.parameters < measured.run.model.num_parameters()
    assert loaded.config.pruning["metrics"] == measured.points[2].report.metrics
    assert FisherPruningConfig.from_pretrained(tmp_path / "small").flops == 0.3
    assert {"README.md", "pruning_report.json", "pruning_plan.safetensors"} <= {p.name for p in tmp_path.glob("*/*")}


def test_the_curve_the_table_and_the_picture(measured: Sweep, tmp_path: Path) -> None:
    curve = measured.curve
    assert [level.details.get("budget") for level in curve.levels] == [None, 0.7, 0.5, 0.3]
    assert curve.strategy["strategy"] == "fisher"
    for level, point in zip(curve.levels[1:], measured.points, strict=True):
        assert level.flops == point.report.pruned.flops / point.report.dense.flops <= point.budget
        assert level.metrics == point.report.metrics["pruned"]
        assert {key: tuple(units) for key, units in level.kept.items()} == dict(point.cut.plan.kept)
    header, rows = measured.rows()
    assert header == [
        "flops", "FLOPs", "attention and FFN parameters", "all parameters", "speed-up", "loss", "accuracy",
        "on the front",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["dense", "0.7", "0.5", "0.3"]
    front = [index for index, row in enumerate(rows[1:]) if row[-1]]
    assert front == measured.pareto()
    assert 2 in front  # nothing is cheaper
    assert rows[0][-1] == ""
    assert measured.to_markdown().count("\n") == 5
    assert measured.pareto(cost="latency")
    measured.plot(path=tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    with pytest.raises(PruningError, match="cost='memory' is unknown; use one of flops, params, latency"):
        measured.pareto(cost="memory")


def test_without_evaluation_there_are_costs_alone(batches: list[Batch]) -> None:
    found = sweep(BERT.model(), MagnitudePruningConfig(params=1.0), batches, [0.5])
    assert found.rows()[0] == ["params", "FLOPs", "attention and FFN parameters", "all parameters"]
    for asked in (found.pareto, found.plot):
        with pytest.raises(PruningError, match="No metric was measured: give sweep eval_dataset="):
            asked()
    with pytest.raises(PruningError, match="was not measured: call sweep with latency=True"):
        found.pareto("loss", "latency")


def test_of_several_metrics_none_decides_by_itself(rows: Dataset) -> None:
    def two(prediction: Any) -> dict[str, float]:
        return {"accuracy": 0.5, "f1": 0.5}

    found = sweep(
        BERT.model(), MagnitudePruningConfig(flops=1.0), rows, [0.5, 0.4], eval_dataset=rows, compute_metrics=two
    )
    assert "on the front" not in found.rows()[0]
    assert [row[-1] for row in found.rows("f1")[1]] == ["", "", "yes"]


def test_the_metric_that_was_named_decides(rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.9, 0.6, 0.8])  # dense, smallest, largest

    def two(prediction: Any) -> dict[str, float]:
        value = next(values)
        return {"accuracy": value, "error_loss": value}

    asked: dict[str, Any] = {"budgets": [0.5, 0.4], "eval_dataset": rows, "compute_metrics": two}
    found = sweep(BERT.model(), MagnitudePruningConfig(flops=1.0), rows, metric="eval_accuracy", **asked)
    assert found.metric == "accuracy"
    assert found.pareto() == [0, 1]
    assert found.pareto("error_loss") == [1]
    assert [row[-1] for row in found.rows()[1]] == ["", "yes", "yes"]
    found.plot(path=tmp_path / "curve.png")

    values = iter([0.9])
    monkeypatch.setattr(pruning_run.PruningRun, "decider", Failing(pruning_run.PruningRun.decider, 0, AssertionError))
    with pytest.raises(PruningError, match=r"metric='f1' is none of what the evaluation gives \(loss, accuracy"):
        sweep(BERT.model(), MagnitudePruningConfig(flops=1.0), rows, metric="f1", **asked)
    del asked["eval_dataset"]
    with pytest.raises(PruningError, match=r"gives \(nothing\): name one of these, or pass eval_dataset="):
        sweep(BERT.model(), MagnitudePruningConfig(flops=1.0), rows, metric="loss", **asked)


def test_the_model_is_measured_once(rows: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    once = Failing(gradient_rows.iterate_gradients, 1, AssertionError)
    monkeypatch.setattr(gradient_rows, "iterate_gradients", once)
    found = sweep(BERT.model(), config(recovery="none", rearrange=False), rows, BUDGETS)
    assert once.times == 0
    assert len(found.points) == 3
    assert list(found.stages) == ["gradients", "search", "repair", "surgery"]


@dataclass
class WholeConfig(PruningConfig):
    strategy: ClassVar[str] = "whole"
    BUDGETS: ClassVar[tuple[str, ...]] = ("heads",)
    heads: float | None = None


@pytest.fixture
def whole() -> Iterator[list[float]]:
    """A strategy that is a plain function, registered for one test; and the budgets that it was called with."""
    importance = config_module.strategy_for(HeadImportancePruningConfig(heads=0.5))
    called: list[float] = []

    def prune(model: Any, anatomy: Any, config: WholeConfig, data: Any, clock: Any) -> Any:
        called.append(config.heads or 0)
        return importance(model, anatomy, HeadImportancePruningConfig(heads=config.heads), data, clock)

    register_strategy(WholeConfig, prune)
    yield called
    del config_module._REGISTRY["whole"]


def test_a_strategy_without_stages_runs_anew_for_every_budget(whole: list[float], batches: list[Batch]) -> None:
    found = sweep(BERT.model(), WholeConfig(heads=0.5), batches, [0.75, 0.25])
    assert whole == [0.25, 0.75]
    for point in found.points:
        alone = prune_model(BERT.model(), HeadImportancePruningConfig(heads=point.budget), batches)
        assert point.cut.plan == alone.plan


def test_a_budget_out_of_reach_is_found_out_first(rows: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "find_steps", Failing(reconstruction.find_steps, 0, AssertionError))
    model = case("bert", "causal").model()  # its first layer keeps a head
    batch = case("bert", "causal").batch()
    witness = Witness(model)
    with pytest.raises(InfeasibleBudgetError, match=r"flops=0.001 is out of reach"):
        sweep(model, config(), [batch], [0.9, 0.001])
    witness.check()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_sweep_leaves_the_model(
    error: type[BaseException], rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BERT.model().train()
    witness = Witness(model)
    monkeypatch.setattr(pruning_run, "evaluate_model", Failing(pruning_run.evaluate_model, 2, error))
    with pytest.raises(error):
        sweep(model, MagnitudePruningConfig(flops=1.0), rows, BUDGETS, eval_dataset=rows)
    witness.check()


@pytest.mark.parametrize(
    ("asked", "budgets", "message"),
    [
        (MagnitudePruningConfig(sparsity=0.5), [0.5], r"sweep varies a budget.*MagnitudePruningConfig\(sparsity=0.5\)"),
        (FisherPruningConfig(max_metric_drop=0.1), [0.5], r"max_metric_drop=0.1\) has none.*call prune_model"),
        (config(), [], r"budgets=\[\] must be one or more different values of flops"),
        (config(), [0.5, 0.5], r"budgets=\[0.5, 0.5\] must be"),
        (config(), [0.5, 1.5], r"flops=1.5 must lie in \(0, 1\]"),
        ({"flops": 0.5}, [0.5], "config is a dict"),
    ],
)
def test_refusals(asked: Any, budgets: list[float], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        sweep(BERT.model(), asked, [BERT.batch()], budgets)
