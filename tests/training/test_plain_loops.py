"""Pruning in loops without a `Trainer`: PyTorch's own and Accelerate's."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_prune import (
    MagnitudePruningConfig,
    MovementPruningConfig,
    PruningConfig,
    PruningError,
    resume_pruning,
    save_pruning,
    start_pruning,
)
from hf_prune.strategies import training
from tests.training.runs import BERT, assert_same, bert, is_clean, kept, rows, weights

STEPS = 6
CONFIGS = {
    "magnitude": MagnitudePruningConfig(sparsity=0.6, frequency=1),
    "movement": MovementPruningConfig(sparsity=0.6),
    "units": MagnitudePruningConfig(flops=0.5, round_to=1, frequency=1),
}
EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def optimizer_of(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def train(model: PreTrainedModel, optimizer: Any, steps: range = range(STEPS)) -> None:
    for step in steps:
        model(**BERT.batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@EVERY
def test_stops_and_goes_on(config: PruningConfig, tmp_path: Path) -> None:
    whole = bert()
    pruner = start_pruning(whole, config, STEPS, optimizer := optimizer_of(whole))
    train(whole, optimizer, range(3))
    save_pruning(pruner, tmp_path)
    stored = weights(whole), copy.deepcopy(optimizer.state_dict())

    resumed = bert(seed=5)
    resumed.load_state_dict(stored[0])
    other = optimizer_of(resumed)
    other.load_state_dict(stored[1])
    again = resume_pruning(resumed, config, STEPS, tmp_path, other)
    train(resumed, other, range(3, STEPS))
    again.finish()

    train(whole, optimizer, range(3, STEPS))
    assert (pruner.step, again.step) == (STEPS, STEPS)
    pruner.finish()
    assert_same(weights(whole), weights(resumed))
    assert is_clean(whole)
    assert not optimizer._optimizer_step_post_hooks


@EVERY
def test_given_up_it_leaves_the_model_whole(config: PruningConfig) -> None:
    """Where no weight that is pruned learns anything, abandoning gives exactly the model there was."""
    model = bert()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = start_pruning(model, config, STEPS, optimizer)
    train(model, optimizer)
    assert any(not torch.equal(value, before[name]) for name, value in weights(model).items())
    pruner.abandon()
    assert_same(weights(model), before)
    assert is_clean(model)


def test_a_loop_with_accelerate_is_like_a_bigger_batch() -> None:
    """Accelerate's optimizer makes a step only when enough gradients have been accumulated; those are counted."""
    big, small = bert(), bert()
    # After Adam's first step all scores are alike but for rounding; so the choice begins later.
    config = MovementPruningConfig(sparsity=0.6, begin=3, end=5)
    data = rows(24).with_format("torch")
    counts = []
    for model, batch_size, accumulated in ((big, 8, 1), (small, 4, 2)):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        loader = DataLoader(data, batch_size=batch_size)
        wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        pruner = start_pruning(accelerator.unwrap_model(wrapped), config, STEPS)
        pruner.follow(optimizer)
        for _ in range(2):
            for batch in loader:
                with accelerator.accumulate(wrapped):
                    accelerator.backward(wrapped(**batch).loss)
                    optimizer.step()
                    optimizer.zero_grad()
        counts.append(pruner.step)
        pruner.finish()
    assert counts == [STEPS, STEPS]
    for name, mask in kept(big).items():
        assert torch.equal(mask, kept(small)[name]), name
    assert all(torch.allclose(value, weights(small)[name], atol=1e-5) for name, value in weights(big).items())


class Scaled:
    """What Accelerate's optimizer is with mixed precision in float16."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        self.optimizer, self.scaler = optimizer, scaler


class TestGradientScaler:
    def run(self, overflow: set[int], scale: float = 4096.0) -> tuple[Any, PreTrainedModel]:
        model = bert()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        pruner = start_pruning(model, MovementPruningConfig(sparsity=0.6, begin=2, end=4), 8)
        pruner.follow(Scaled(optimizer, scaler))
        for step in range(STEPS):
            if step in overflow:
                self.step(model, optimizer, scaler, step, float("inf"))
            self.step(model, optimizer, scaler, step)
        return pruner, model

    def step(self, model: Any, optimizer: Any, scaler: Any, step: int, factor: float = 1.0) -> None:
        scaler.scale(model(**BERT.batch(step)).loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    def test_scores_learn_from_unscaled_gradients(self) -> None:
        plain, _ = self.run(set(), scale=1.0)
        scaled, _ = self.run(set(), scale=4096.0)
        for one, other in zip(plain.scores.scores(plain.masks), scaled.scores.scores(scaled.masks), strict=True):
            assert torch.allclose(one, other, atol=1e-6)

    def test_steps_that_are_given_up_are_as_if_they_had_not_been(self) -> None:
        """Powers of two scale without rounding, so the scale that falls after an overflow leaves no trace."""
        plain, model = self.run(set())
        skipping, other = self.run({0, 1, 4})
        assert plain.step == skipping.step == STEPS
        assert_same(weights(model), weights(other))
        assert_same(plain.state(), skipping.state())


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("name", ["magnitude", "units"])
def test_masks_that_were_due_in_a_step_that_was_given_up_are_made_in_the_next(name: str, first: bool) -> None:
    """A Trainer counts steps that mixed precision gave up, but its optimizer has not made them."""
    config = replace(CONFIGS[name], begin=2, end=2, frequency=1000)
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = start_pruning(model, config, 8, optimizer)

    def step() -> bool:
        model(**BERT.batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return pruner.masks.removed_count > 0

    assert first or not step()  # a scaler's first factor is too large for most
    pruner.step = 2
    assert step()
    assert pruner.reached


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fused_optimizer_is_called_for_steps_that_are_given_up(name: str) -> None:
    """It finds out by itself; what follows it has to, too."""
    model = bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    pruner = start_pruning(model, CONFIGS[name], STEPS)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    pruner.take_scaler(scaler)
    pruner.follow(optimizer)  # which leaves the scaler that it was given
    for number in range(STEPS + 1):
        loss = model(**BERT.batch(seed=number)).loss
        scaler.scale(loss * torch.inf if number == 1 else loss).backward()
        before = weights(model)["classifier.weight"].clone()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, weights(model)["classifier.weight"]) == (number == 1)
        assert pruner.step == number + (number < 1)
    result = pruner.finish()
    assert all(value.isfinite().all() for value in weights(result.model).values())
    assert is_clean(model)


def test_what_was_begun_and_abandoned_leaves_no_metadata() -> None:
    model = bert()
    config = model.config
    pruner = start_pruning(model, replace(CONFIGS["magnitude"], begin=0, end=0), STEPS)
    assert "pruning" in model.config.to_dict()
    pruner.abandon()
    assert model.config is config
    assert "pruning" not in model.config.to_dict()


def test_a_step_that_was_given_up_after_resuming(tmp_path: Path) -> None:
    config = replace(CONFIGS["magnitude"], begin=2, end=2, frequency=1000)
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = start_pruning(model, config, 8, optimizer)
    model(**BERT.batch()).loss.backward()
    optimizer.step()
    save_pruning(pruner, tmp_path)
    pruner.abandon()
    pruner = resume_pruning(model, config, 8, tmp_path, optimizer)
    pruner.step = 2
    optimizer.step()
    assert pruner.masks.removed_count > 0


def test_a_model_that_was_moved_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert()
    pruner = start_pruning(model, CONFIGS["magnitude"], STEPS)
    monkeypatch.setattr(training, "device_of", lambda model: torch.device("cuda:0"))
    with pytest.raises(PruningError, match=r"was on cpu when pruning began and is on cuda:0 now"):
        pruner.follow(torch.optim.SGD(model.parameters(), lr=1e-3))
    pruner.abandon()


def test_what_has_no_steps_cannot_be_followed() -> None:
    pruner = start_pruning(bert(), CONFIGS["magnitude"], STEPS)
    with pytest.raises(PruningError, match=r"object is no torch\.optim\.Optimizer"):
        pruner.follow(object())
    wrapped = type("DeepSpeedOptimizerWrapper", (torch.optim.SGD,), {})(bert().parameters(), lr=0.1)
    with pytest.raises(PruningError, match="under DeepSpeed is not supported"):
        pruner.follow(wrapped)
    pruner.abandon()
