"""Movement scores on weights that do not learn, and scores that are a model's parameters."""

from __future__ import annotations

import torch
from torch import nn

from hf_prune.anatomy import WeightMatrix
from hf_prune.gates import WeightMasks
from hf_prune.scores import MovementScores, ParameterScores


class Scaler:
    """As much of a gradient scaler as scores look at."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


def frozen_scores(rate: float = 0.1) -> tuple[MovementScores, WeightMasks, nn.Parameter]:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    weight.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    matrices = [WeightMatrix("layer.0.weight", "layer.0", weight)]
    scores = MovementScores(matrices, rate, None, frozen=True)
    masks = WeightMasks(matrices, scores.watch)
    scores.attach(masks)
    return scores, masks, weight


def test_gradients_add_up_though_those_of_the_weights_are_not_kept() -> None:
    scores, _, weight = frozen_scores()
    for factor in (1.0, 2.0):
        (factor * weight).sum().backward()
    assert weight.grad is None
    assert torch.equal(scores._scores[0].grad, 3 * weight)


def test_step_that_was_given_up_for_an_overflow_leaves_nothing() -> None:
    scores, masks, weight = frozen_scores()
    scores.scaler = Scaler(4.0)
    (float("inf") * weight).sum().backward()
    scores.scaler.scale = 2.0
    (2.0 * weight).sum().backward()
    (4.0 * weight).sum().backward()
    assert torch.equal(scores._scores[0].grad, 6 * weight)
    scores.learn(masks, 1.0, 0.0)
    assert torch.allclose(scores.scores(masks)[0], -0.1 * weight.sign(), atol=1e-5)


def test_parameters_of_another_optimizer_are_moved_by_their_own_alone() -> None:
    _, masks, weight = frozen_scores()
    parameter = nn.Parameter(torch.zeros(2, 2))
    scores = ParameterScores(masks.matrices, [parameter], 0.1)
    optimizer = torch.optim.SGD([parameter], lr=100.0, weight_decay=0.5)
    optimizer.register_step_pre_hook(lambda *_: scores.set_aside())
    optimizer.register_step_post_hook(lambda *_: scores.learn(masks, 1.0, 0.0))
    gradient = torch.tensor([[0.1, -0.2], [0.3, 0.4]])
    for _ in range(2):
        parameter.grad = gradient.clone()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(parameter.detach(), -0.2 * gradient.sign(), atol=1e-5)
    assert not optimizer.state
    assert torch.equal(weight.detach(), torch.tensor([[1.0, -2.0], [3.0, 4.0]]))


def test_state_of_parameters() -> None:
    _, masks, _ = frozen_scores()
    first, second = (nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    scores = ParameterScores(masks.matrices, [first], 0.1)
    first.grad = torch.ones(2, 2)
    scores.set_aside()
    scores.learn(masks, 1.0, 0.0)
    again = ParameterScores(masks.matrices, [second], 0.1)
    again.load_state(scores.state())
    assert torch.equal(second, first)
    assert second.requires_grad
    for own, parameter in ((scores, first), (again, second)):
        parameter.grad = torch.full((2, 2), -0.5)
        own.set_aside()
        own.learn(masks, 1.0, 0.0)
    assert torch.equal(second, first)
