from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_prune import PruningError
from hf_prune.anatomy import all_matrices
from hf_prune.gates import WeightMasks
from hf_prune.scores import MovementScores
from tests.small_models import case

CASE = case("bert", "classification")
NAMES = [f"bert.encoder.layer.{layer}.attention.self.query.weight" for layer in range(2)]


def scored(model: nn.Module, rate: float = 0.1, max_norm: float | None = None) -> tuple[MovementScores, WeightMasks]:
    matrices = [matrix for matrix in all_matrices(model) if matrix.name in NAMES]
    scores = MovementScores(matrices, rate, max_norm)
    masks = WeightMasks(matrices, scores.watch)
    scores.attach(masks)
    return scores, masks


def random_masks(masks: WeightMasks, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(mask.shape, generator=generator) > 0.4 for mask in masks.masks]


class _StraightThrough(torch.autograd.Function):
    """A mask that looks like the score itself to the gradient."""

    @staticmethod
    def forward(ctx: object, score: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask.to(score.dtype)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None


def literal_gradients(
    model: nn.Module, masks: list[torch.Tensor], batches: list[dict[str, torch.Tensor]]
) -> list[torch.Tensor]:
    """∂L/∂S of W' = straight_through(S) ∘ W, through autograd; `model` has the raw weights."""
    scores = [torch.zeros_like(model.get_parameter(name)).requires_grad_() for name in NAMES]
    for batch in batches:
        weights = {
            name: _StraightThrough.apply(score, mask) * model.get_parameter(name).detach()
            for name, score, mask in zip(NAMES, scores, masks, strict=True)
        }
        torch.func.functional_call(model, weights, kwargs=batch).loss.backward()
    return [score.grad for score in scores if score.grad is not None]


def test_score_gradients_are_the_straight_through_ones_also_when_accumulated() -> None:
    model = CASE.model()
    raw = copy.deepcopy(model)
    batches = [CASE.batch(seed) for seed in range(2)]
    scores, masks = scored(model)
    chosen = random_masks(masks)
    masks.set(chosen)
    for batch in batches:
        model(**batch).loss.backward()
    expected = literal_gradients(raw, chosen, batches)
    for score, gradient in zip(scores.scores(masks), expected, strict=True):
        assert score.grad is not None
        torch.testing.assert_close(score.grad, gradient)
    model.zero_grad()
    model(**batches[0]).loss.backward()  # a new step begins by itself
    for score, gradient in zip(scores.scores(masks), literal_gradients(raw, chosen, batches[:1]), strict=True):
        torch.testing.assert_close(score.grad, gradient)


def test_learning_is_adam_with_its_own_rate_and_the_penaltys_gradient() -> None:
    model, batch = CASE.model(), CASE.batch()
    scores, masks = scored(model, rate=0.1)
    literal = [torch.zeros_like(score, requires_grad=True) for score in scores.scores(masks)]
    optimizer = torch.optim.AdamW(literal, lr=0.1, weight_decay=0.0)
    for step, rate in enumerate((1.0, 0.5, 0.25)):
        model.zero_grad()
        model(**batch).loss.backward()
        for own, score in zip(literal, scores.scores(masks), strict=True):
            assert score.grad is not None
            penalty = 3.0 * torch.stack([item.sigmoid().mean() for item in literal]).mean()
            (extra,) = torch.autograd.grad(penalty, own)
            own.grad = score.grad.clone() + extra
        optimizer.param_groups[0]["lr"] = 0.1 * rate
        optimizer.step()
        scores.learn(masks, rate, penalty=3.0)
        for own, score in zip(literal, scores.scores(masks), strict=True):
            torch.testing.assert_close(score, own.detach(), msg=f"step {step}")
            assert score.grad is None


def test_gradients_are_clipped_together() -> None:
    model, batch = CASE.model(), CASE.batch()
    scores, masks = scored(model, max_norm=None)
    clipped, clipped_masks = scored(copy.deepcopy(model), max_norm=1e-3)
    del clipped_masks
    model(**batch).loss.backward()
    gradients = [score.grad.clone() for score in scores.scores(masks) if score.grad is not None]
    for score, gradient in zip(clipped.scores(masks), gradients, strict=True):
        score.grad = gradient.clone()
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert norm > 1e-3
    clipped.learn(masks, 1.0, 0.0)
    first_moment = clipped.state()[f"{NAMES[0]}.exp_avg"]
    torch.testing.assert_close(first_moment, 0.1 * gradients[0] * (1e-3 / (norm + 1e-6)))


def test_scaled_gradients_are_unscaled() -> None:
    class Scaler:
        def get_scale(self) -> float:
            return 1024.0

    model, batch = CASE.model(), CASE.batch()
    scores, masks = scored(model)
    model(**batch).loss.backward()
    plain = scores.scores(masks)[0].grad.clone()
    scores.learn(masks, 0.0, 0.0)
    expected = scores.state()[f"{NAMES[0]}.exp_avg"]
    other, other_masks = scored(CASE.model())
    other.scaler = Scaler()
    (other_masks.matrices[0].parameter.sum() * 0).backward()
    for score in other.scores(other_masks):
        score.grad = None
    other.scores(other_masks)[0].grad = plain * 1024
    other.learn(other_masks, 0.0, 0.0)
    torch.testing.assert_close(other.state()[f"{NAMES[0]}.exp_avg"], expected)


def test_state_goes_on_where_it_was_taken() -> None:
    model, batches = CASE.model(), [CASE.batch(seed) for seed in range(4)]
    scores, masks = scored(model)

    def learn(
        model: nn.Module, scores: MovementScores, masks: WeightMasks, batches: list[dict[str, torch.Tensor]]
    ) -> None:
        for batch in batches:
            model.zero_grad()
            model(**batch).loss.backward()
            scores.learn(masks, 1.0, 0.0)

    learn(model, scores, masks, batches[:2])
    saved = {name: value.clone() for name, value in scores.state().items()}
    learn(model, scores, masks, batches[2:])
    other_model = CASE.model()
    other, other_masks = scored(other_model)
    other.load_state(saved)
    learn(other_model, other, other_masks, batches[2:])
    for one, two in zip(scores.scores(masks), other.scores(other_masks), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(PruningError, match="stored scores do not fit"):
        other.load_state({name: value[:1] if value.dim() else value for name, value in saved.items()})
    with pytest.raises(PruningError, match="stored scores do not fit"):
        other.load_state({})


def test_one_go_is_one_gradient_step() -> None:
    model, batch = CASE.model(), CASE.batch()
    scores, masks = scored(model)
    model(**batch).loss.backward()
    scores.add_movement()
    for name, score in zip(NAMES, scores.scores(masks), strict=True):
        parameter = model.get_parameter(name)
        assert parameter.grad is not None
        torch.testing.assert_close(score, -(parameter.grad * parameter).detach())
