"""A metric's floor as a budget: the bisection, what it finds on a model, what it says about it, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as some

from hf_prune import FisherPruningConfig, InfeasibleBudgetError, PruningError, PruningResult, prune_model
from hf_prune.metric_floor import RESOLUTION, bisect, proportion_note
from hf_prune.pruning_run import Evaluation
from tests.small_models import Batch, case
from tests.witness import Witness

BERT = case("bert", "classification")
SIZES = round(1 / RESOLUTION)


def config(**settings: Any) -> FisherPruningConfig:
    return FisherPruningConfig(**{"latency_batch_size": 2, "round_to": 1, "batch_size": 4} | settings)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


@pytest.fixture
def own_labels(rows: Dataset) -> Dataset:
    """The rows with the labels that the dense model gives them: its accuracy is 1."""
    with torch.no_grad():
        batch = {name: torch.tensor(rows[name]) for name in ("input_ids", "attention_mask")}
        labels = BERT.model()(**batch).logits.argmax(1).tolist()
    return rows.remove_columns("labels").add_column("labels", labels)


class TestBisection:
    @given(some.floats(0, 1, exclude_min=True))
    def test_finds_what_a_scan_of_all_sizes_finds(self, planted: float) -> None:
        sizes = [size / SIZES for size in range(1, SIZES)]
        literal = next((size for size in sizes if size >= planted), None)
        tried: list[float] = []
        found = bisect(lambda size: not tried.append(size) and size >= planted, RESOLUTION)
        assert found == literal
        assert len(tried) == 7

    @given(some.floats(0, 1), some.lists(some.booleans(), min_size=12, max_size=12))
    def test_what_is_out_of_reach_is_passed_over(self, reachable: float, answers: list[bool]) -> None:
        tried: dict[float, bool] = {}

        def holds(size: float) -> bool:
            if size < reachable:
                raise InfeasibleBudgetError("too small", reachable)
            tried[size] = answers[len(tried)]
            return tried[size]

        found = bisect(holds, RESOLUTION)
        held = [size for size, answer in tried.items() if answer]
        assert found == (min(held) if held else None)


def found(rows: Dataset, **settings: Any) -> PruningResult:
    data = settings.pop("calibration", rows)
    return prune_model(BERT.model(), config(**settings), data, eval_dataset=rows, compute_metrics=accuracy)


@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_the_smallest_that_held_is_returned(own_labels: Dataset, tmp_path: Path, drop: float) -> None:
    result = found(own_labels, max_metric_drop=drop)
    measured = result.report.metrics
    assert measured["dense"]["accuracy"] == 1
    assert measured["pruned"]["accuracy"] >= 1 - drop
    curve = result.curve
    assert curve is not None
    assert curve[0].params == curve[0].flops == 1
    budgets = [level.details["budget"] for level in curve.levels[1:]]
    assert budgets == sorted(budgets, reverse=True)
    kept = {key: tuple(units) for key, units in result.plan.kept.items()}
    (place,) = [index for index, level in enumerate(curve.levels) if dict(level.kept) == kept]
    # What was tried below it lost more.
    assert all(level.metrics["accuracy"] < 1 - drop for level in curve.levels[place + 1 :])
    again = prune_model(BERT.model(), config(flops=budgets[place - 1]), own_labels)
    assert again.plan == result.plan
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name])
    assert f"Of {len(budgets)} sizes tried, flops={budgets[place - 1]:.4g} is the smallest" in result.report.notes[-2]
    assert "With 24 evaluation examples a point of accuracy is 0.24 examples" in result.report.notes[-1]
    result.save_pretrained(tmp_path)
    assert FisherPruningConfig.from_pretrained(tmp_path) == result.config == config(max_metric_drop=drop)


def test_of_a_loss_less_is_better(rows: Dataset) -> None:
    result = found(rows, max_metric_drop=0.2, metric="eval_loss", recovery="none", rearrange=False)
    losses = {side: metrics["loss"] for side, metrics in result.report.metrics.items()}
    assert losses["pruned"] <= losses["dense"] + 0.2
    assert "whose loss is at most 0.2 worse" in result.report.notes[-1]


class TestRefusals:
    def test_nothing_to_measure_on(self, batches: list[Batch]) -> None:
        model = BERT.model()
        witness = Witness(model)
        with pytest.raises(PruningError, match=r"max_metric_drop=0.01 chooses a size by a metric.*eval_dataset="):
            prune_model(model, config(max_metric_drop=0.01), batches)
        witness.check()

    def test_retraining(self, rows: Dataset) -> None:
        with pytest.raises(PruningError, match="train the pruned model afterwards"):
            prune_model(
                BERT.model(),
                config(max_metric_drop=0.01),
                rows,
                eval_dataset=rows,
                retrain=lambda model: pytest.fail("it was trained"),  # type: ignore[arg-type,return-value]
            )

    def test_a_metric_that_is_not_there(self, rows: Dataset) -> None:
        with pytest.raises(PruningError, match="no metric 'f1', only loss, accuracy"):
            found(rows, max_metric_drop=0.01, metric="f1")

    def test_several_metrics(self, rows: Dataset) -> None:
        with pytest.raises(PruningError, match="the metrics accuracy, f1: say which one with metric="):
            prune_model(
                BERT.model(),
                config(max_metric_drop=0.01),
                rows,
                eval_dataset=rows,
                compute_metrics=lambda prediction: {"accuracy": 1.0, "f1": 1.0},
            )

    def test_a_dense_metric_that_is_no_number(self, rows: Dataset) -> None:
        with pytest.raises(PruningError, match="dense model's accuracy is NaN"):
            prune_model(
                BERT.model(),
                config(max_metric_drop=0.01),
                rows,
                eval_dataset=rows,
                compute_metrics=lambda prediction: {"accuracy": float("nan")},
            )

    def test_a_floor_that_none_holds(self, rows: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        """A planted metric: 0.05 are lost on any cut, and the rest with the parameters."""
        model = BERT.model()
        dense = model.num_parameters()

        def planted(self: Evaluation, model: Any, clock: Any) -> dict[str, float]:
            kept = model.num_parameters() / dense
            return {"accuracy": 0.9 if kept == 1 else 0.85 * kept}

        monkeypatch.setattr(Evaluation, "metrics", planted)
        witness = Witness(model)
        asked = config(max_metric_drop=0.01, recovery="none", rearrange=False)
        with pytest.raises(InfeasibleBudgetError, match=r"drop=0.01 is out of reach.*of 7 smaller ones") as caught:
            prune_model(model, asked, rows, eval_dataset=rows)
        witness.check()
        # The first size that was tried whose drop is the least is the largest one, half a percent below the dense.
        assert 0.05 < caught.value.smallest < 0.06
        assert f"the best loses {caught.value.smallest:.4f} (at flops=0.9922)" in str(caught.value)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_metric_drop": -0.1}, "max_metric_drop=-0.1 must be a number of at least 0"),
            ({"max_metric_drop": 0.1, "flops": 0.5}, "exactly one budget"),
            ({"flops": 0.5, "metric": "f1"}, "metric='f1' says nothing without max_metric_drop="),
        ],
    )
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(PruningError, match=message):
            config(**settings)


class TestConfidence:
    def test_is_wilsons_interval(self) -> None:
        right, count, z = 776, 872, 1.959963984540054
        share = right / count
        middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
        assert proportion_note("accuracy", share, range(count)) == (
            "With 872 evaluation examples a point of accuracy is 8.72 examples, and 0.8899 has a 95 % interval from"
            f" {middle - half:.4f} to {middle + half:.4f}: smaller differences say little."
        )

    def test_is_said_only_of_shares_of_the_examples(self) -> None:
        assert proportion_note("f1", 0.5, range(10)) is None
        assert proportion_note("accuracy", 0.5, iter(range(10))) is None
        assert proportion_note("accuracy", 0.537, range(10)) is None  # a share of tokens
        assert proportion_note("accuracy", 50.0, range(10)) is None
