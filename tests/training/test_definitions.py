"""Magnitude and movement pruning against their definitions: raw weights, explicit masks, explicit scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from hf_prune import MagnitudePruningConfig, MovementPruningConfig, start_pruning
from hf_prune.scores import cubic_sparsity
from tests.training.runs import BERT, assert_close, bert, weights

STEPS = 8
RATE, SCORE_RATE = 0.01, 0.1


class StraightThrough(torch.autograd.Function):
    """A mask that lets the scores' gradient pass as if it were not there (Sanh et al. 2020, section 4)."""

    @staticmethod
    def forward(ctx: object, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask.to(scores.dtype)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def batch(step: int) -> dict[str, torch.Tensor]:
    return BERT.batch(seed=step)


def highest(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """All but the lowest, by a plain sort; of equal ones those that come first stay."""
    keep = scores.numel() - round(scores.numel() * sparsity)
    order = scores.detach().flatten().sort(descending=True, stable=True).indices
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_magnitude(scope: str) -> None:
    model, twin = bert().double(), bert().double()
    config = MagnitudePruningConfig(sparsity=0.7, begin=1.5, end=6, frequency=1, scope=scope)
    pruner = start_pruning(model, config, STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    pruner.follow(optimizer)
    names = [matrix.name for matrix in pruner.masks.matrices]

    raw = {name: value.detach().clone().requires_grad_() for name, value in twin.named_parameters()}
    masks = {name: torch.ones_like(raw[name], dtype=torch.bool) for name in names}
    for step in range(1, STEPS + 1):
        model(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        masked = {name: value * masks[name] if name in masks else value for name, value in raw.items()}
        loss = functional_call(twin, masked, kwargs=batch(step)).loss
        gradients = torch.autograd.grad(loss, list(raw.values()), allow_unused=True)
        with torch.no_grad():
            for value, gradient in zip(raw.values(), gradients, strict=True):
                if gradient is not None:
                    value -= RATE * gradient
        sparsity = cubic_sparsity(step, 2, 6, 0.0, 0.7)
        if step >= 2 and scope == "matrix":
            masks = {name: highest(raw[name].abs(), sparsity) for name in names}
        elif step >= 2:
            joint = highest(torch.cat([raw[name].abs().flatten() for name in names]), sparsity)
            parts = joint.split([raw[name].numel() for name in names])
            masks = {name: part.reshape(raw[name].shape) for name, part in zip(names, parts, strict=True)}
        for name, mask in masks.items():
            assert torch.equal(model.get_parameter(name) != 0, mask), (step, name)
            index = names.index(name)
            assert torch.allclose(pruner.masks.raw(index), raw[name], atol=1e-9), (step, name)
    masked = {name: value * masks[name] if name in masks else value for name, value in raw.items()}
    assert_close({name: value.detach() for name, value in model.named_parameters()}, detached(masked), 1e-9)


def detached(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in tensors.items()}


@pytest.mark.parametrize("threshold", [None, 0.47])
def test_movement(threshold: float | None) -> None:
    model, twin = bert(), bert()
    settings = {"sparsity": 0.7} if threshold is None else {"threshold": threshold, "regularization": 20.0}
    config = MovementPruningConfig(begin=2, end=6, score_learning_rate=SCORE_RATE, **settings)
    pruner = start_pruning(model, config, STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    pruner.follow(optimizer)
    names = [matrix.name for matrix in pruner.masks.matrices]
    assert len(names) == 18

    raw = {name: value.detach().clone().requires_grad_() for name, value in twin.named_parameters()}
    scores = {name: nn.Parameter(torch.zeros_like(raw[name])) for name in names}
    masks = {name: torch.ones_like(raw[name], dtype=torch.bool) for name in names}
    learning = torch.optim.AdamW(scores.values(), lr=SCORE_RATE, weight_decay=0.0)
    for step in range(1, STEPS + 1):
        model(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        masked = {
            name: value * StraightThrough.apply(scores[name], masks[name]) if name in masks else value
            for name, value in raw.items()
        }
        loss = functional_call(twin, masked, kwargs=batch(step)).loss
        if threshold is not None:
            penalty = torch.stack([score.sigmoid().mean() for score in scores.values()]).mean()
            loss = loss + 20.0 * cubic_sparsity(step, 2, 6, 0.0, threshold) / threshold * penalty
        learning.zero_grad()
        for value in raw.values():
            value.grad = None
        loss.backward()
        with torch.no_grad():
            for value in raw.values():
                if value.grad is not None:
                    value -= RATE * value.grad
        nn.utils.clip_grad_norm_(scores.values(), 1.0)
        learning.param_groups[0]["lr"] = SCORE_RATE * (1 - step / STEPS)
        learning.step()
        if step >= 2 and threshold is None:
            masks = {name: highest(scores[name], cubic_sparsity(step, 2, 6, 0.0, 0.7)) for name in names}
        elif step >= 2:
            bound = cubic_sparsity(step, 2, 6, 0.0, threshold)
            masks = {name: scores[name].detach().sigmoid() > bound for name in names}
        for index, name in enumerate(names):
            assert torch.allclose(pruner.scores.scores(pruner.masks)[index], scores[name], atol=1e-5), (step, name)
            differing = int((pruner.masks.masks[index] != masks[name]).sum())
            assert differing <= 2, (step, name, differing)  # of equal scores, to rounding, another one may stay
            masks[name] = pruner.masks.masks[index].clone()
        masked = {name: value * masks[name] if name in masks else value for name, value in raw.items()}
        assert_close({name: value.detach() for name, value in model.named_parameters()}, detached(masked), 1e-5)
    removed = sum(int((~mask).sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert 0.2 < removed < 0.9


def test_regrowth() -> None:
    """A weight that was removed comes back, with its value, when those that stayed have become smaller."""
    model = bert()
    matrix = model.bert.encoder.layer[0].attention.self.query.weight
    config = MagnitudePruningConfig(sparsity=0.5, end=0.0, frequency=1, target_modules=["layer.0.attention.self.query"])
    pruner = start_pruning(model, config, 4)
    before = weights(model)
    removed = matrix == 0
    value = pruner.masks.raw(0)[removed].clone()
    optimizer = torch.optim.SGD([matrix], lr=1.0)
    pruner.follow(optimizer)
    matrix.grad = torch.where(removed, 0.0, matrix.detach() * (1 - 1e-6))  # all but nothing of the others is left
    optimizer.step()
    assert torch.equal(matrix[removed], value)
    assert bool((matrix[~removed] == 0).all())
    assert not torch.equal(before["bert.encoder.layer.0.attention.self.query.weight"], matrix)
