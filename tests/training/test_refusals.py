"""What cannot be pruned in training is refused before the first step, and the model is left as it was."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_prune import (
    FisherPruningConfig,
    HoldPruningConfig,
    InfeasibleBudgetError,
    MagnitudePruningConfig,
    MovementPruningConfig,
    PruningCallback,
    PruningConfig,
    PruningError,
    RandomPruningConfig,
    start_pruning,
)
from hf_prune.gates import remove_weight_masks
from tests.training.runs import STEPS, assert_same, bert, is_clean, kept, train, trainer_of, weights


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, float("nan"), float("inf"), True, "0.5"])
@pytest.mark.parametrize("config_class", [MagnitudePruningConfig, MovementPruningConfig, RandomPruningConfig])
def test_sparsity_out_of_range(config_class: Any, sparsity: Any) -> None:
    with pytest.raises(PruningError, match=r"sparsity=.* must lie in \[0, 1\)"):
        config_class(sparsity=sparsity)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MagnitudePruningConfig(sparsity=0.5, target_modules=["qurey"]),
            "'qurey' matches nothing.*'query'",
        ),
        (
            MagnitudePruningConfig(sparsity=0.5, exclude_modules=["pooler.dence"]),
            "exclude_modules: .*'pooler.dense'",
        ),
        (MagnitudePruningConfig(flops=0.5, target_modules=["layer.7"]), "'layer.7' matches nothing"),
        (MagnitudePruningConfig(latency=0.5), r"latency=0\.5 .*flops= or params="),
        (MagnitudePruningConfig(pattern="3:5"), "32 inputs, which pattern='3:5' cannot divide"),
        (HoldPruningConfig(), "has no zeros to hold"),
        (None, "says nothing of removed weights"),
    ],
    ids=lambda value: getattr(value, "strategy", None),
)
def test_settings_that_do_not_fit_the_model(tmp_path: Path, config: PruningConfig | None, message: str) -> None:
    model = bert()
    before = weights(model)
    with pytest.raises(PruningError, match=message):
        train(model, tmp_path, config)
    assert_same(weights(model), before)
    assert is_clean(model)


def test_a_budget_out_of_reach(tmp_path: Path) -> None:
    model = bert()
    with pytest.raises(InfeasibleBudgetError):
        train(model, tmp_path, MagnitudePruningConfig(flops=1e-6, target_modules=["layer.0.attention"], round_to=1))
    assert is_clean(model)
    train(model, tmp_path, MagnitudePruningConfig(flops=0.5, round_to=1))


def test_strategies_that_prune_at_one_go() -> None:
    with pytest.raises(PruningError, match=r"give it to prune_model.*these strategies prune it: .*magnitude"):
        PruningCallback(FisherPruningConfig(flops=0.5))


def test_what_is_no_configuration() -> None:
    with pytest.raises(PruningError, match="config is a float"):
        PruningCallback(0.5)
    with pytest.raises(PruningError, match="Unknown pruning strategy 'magnitud'"):
        PruningCallback({"strategy": "magnitud", "sparsity": 0.5})


@pytest.mark.parametrize("steps", [0, -1])
def test_a_training_of_unknown_length(steps: int) -> None:
    with pytest.raises(PruningError, match="how many optimizer steps"):
        start_pruning(bert(), MagnitudePruningConfig(sparsity=0.5), steps)


@pytest.mark.parametrize(
    ("schedule", "reached"),
    [
        ({"begin": 0.0, "end": 12, "frequency": 1}, 0.6 * (1 - 0.5**3)),
        ({"begin": 0.0, "end": 12, "frequency": 4}, 0.6 * (1 - (2 / 3) ** 3)),
        ({"begin": 10, "end": 12, "frequency": 1}, 0.0),
    ],
)
def test_a_schedule_that_ends_after_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, schedule: dict[str, Any], reached: float
) -> None:
    model = bert()
    with caplog.at_level(logging.WARNING, logger="hf_prune"):
        callback = train(model, tmp_path, MagnitudePruningConfig(sparsity=0.6, **schedule))
    warning = f"ends at step 12, but training does at step 6: it will get to {reached:.4g} instead of 0.6"
    assert warning in caplog.text
    for name, mask in callback.result.plan.masks.items():
        assert int((~mask).sum()) == round(reached * mask.numel()), name


def test_a_training_that_is_stopped_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import TrainerCallback

    class Stops(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 2

    model = bert()
    callback = PruningCallback(MagnitudePruningConfig(sparsity=0.6, frequency=1))
    with caplog.at_level(logging.WARNING, logger="hf_prune"):
        trainer_of(model, tmp_path, callback, Stops()).train()
    assert "Training ended before the pruning schedule did: sparsity 0.57" in caplog.text
    assert is_clean(model)
    assert_same(dict(callback.result.plan.masks), kept(model))


class TestWeights:
    def test_that_are_not_floating_point(self, tmp_path: Path) -> None:
        model = bert()
        dense = model.bert.encoder.layer[1].output.dense
        dense.weight = nn.Parameter(dense.weight.detach().to(torch.int8), requires_grad=False)
        with pytest.raises(PruningError, match=r"layer\.1\.output\.dense\.weight holds int8 numbers"):
            train(model, tmp_path, MagnitudePruningConfig(sparsity=0.5))
        assert is_clean(model)

    def test_that_have_no_values(self) -> None:
        with pytest.raises(PruningError, match="meta device"):
            start_pruning(bert().to("meta"), MagnitudePruningConfig(sparsity=0.5), STEPS)

    def test_that_are_not_numbers(self, tmp_path: Path) -> None:
        model = bert()
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
        with pytest.raises(PruningError, match=r"not numbers \(NaN\)"):
            train(model, tmp_path, MagnitudePruningConfig(sparsity=0.5))
        assert is_clean(model)

    def test_that_stop_being_numbers(self, tmp_path: Path) -> None:
        """The learning rate is far too high: training diverges, and says so at the next choice of masks."""
        with pytest.raises(PruningError, match="Has training diverged"):
            train(bert(), tmp_path, MagnitudePruningConfig(sparsity=0.5, frequency=1), optim="sgd", learning_rate=1e38)

    def test_that_another_training_has_left_masked(self, tmp_path: Path) -> None:
        model = bert()
        start_pruning(model, MagnitudePruningConfig(sparsity=0.5, end=0.0), STEPS)
        with pytest.raises(PruningError, match=r"masked already.*remove_weight_masks"):
            train(model, tmp_path, MagnitudePruningConfig(sparsity=0.5))
        remove_weight_masks(model)
        assert is_clean(model)
        train(model, tmp_path, MagnitudePruningConfig(sparsity=0.5))


def test_frozen_weights_have_no_movement(tmp_path: Path) -> None:
    model = bert()
    model.bert.encoder.layer[1].requires_grad_(False)
    with pytest.raises(PruningError, match=r"layer\.1\..*frozen\. Unfreeze it"):
        train(model, tmp_path, MovementPruningConfig(sparsity=0.5))
    assert is_clean(model)
