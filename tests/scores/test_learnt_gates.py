"""Gates that learn: the penalty's gradient, the Lagrangian, and a training done by autograd alone."""

from __future__ import annotations

import math

import pytest
import torch

from hf_prune import PruningError, describe_model
from hf_prune.gates import hard_concrete
from hf_prune.scores import LearntGates, expected_cost, penalty_slope
from hf_prune.scores.learnt_gates import FARTHEST, INITIAL
from tests.small_models import case

TEMPERATURE = 0.5
PRICES = (0.05, 0.01)


def blocks() -> list:
    return list(describe_model(case("bert", "classification").model()).blocks[:2])


def gates(**settings: object) -> LearntGates:
    chosen = {"learning_rate": 0.1, "temperature": TEMPERATURE} | settings
    return LearntGates(blocks(), PRICES, 0.4, torch.device("cpu"), **chosen)


def open_share(alpha: torch.Tensor) -> torch.Tensor:
    """P(z > 0) by its definition, differentiable."""
    return torch.sigmoid(alpha - TEMPERATURE * math.log(0.1 / 1.1))


def test_expected_cost() -> None:
    alphas = [torch.tensor([0.0, 1.0, -3.0]), torch.tensor([2.0])]
    by_hand = 0.3 * sum(float(open_share(value)) for value in alphas[0]) + 0.7 * float(open_share(alphas[1][0]))
    assert expected_cost(alphas, (0.3, 0.7), TEMPERATURE).item() == pytest.approx(by_hand, rel=1e-6)
    everything = gates().cost()
    assert everything == pytest.approx(0.4 + (4 * 0.05 + 40 * 0.01) * float(open_share(torch.tensor(INITIAL))))


def test_slope_is_the_derivative_of_the_lagrangian() -> None:
    cost = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    first, second = torch.tensor([0.7, 1.9], dtype=torch.float64)
    (first * (cost - 0.5) + second * (cost - 0.5) ** 2).backward()
    found = penalty_slope(torch.tensor(0.3, dtype=torch.float64), torch.stack([first, second]))
    assert found.item() == pytest.approx(cost.grad.item(), rel=1e-12)


@pytest.mark.parametrize("factor", [None, 2.0])
def test_learning_is_that_of_the_whole_loss(factor: float | None) -> None:
    """One loss with the penalty in it, descended by the gates and climbed by the multipliers."""
    learnt = gates(factor=factor)
    weights = [torch.linspace(-1, 2, 4), torch.linspace(-0.3, 0.3, 40)]
    alphas = [torch.full((size,), INITIAL, requires_grad=True) for size in (4, 40)]
    multipliers = torch.zeros(2, requires_grad=True)
    descent, ascent = torch.optim.Adam(alphas, lr=0.1), torch.optim.Adam([multipliers], lr=0.1, maximize=True)
    for step in range(30):
        target = 1.0 - 0.02 * step
        torch.manual_seed(step)
        learnt.draw()
        loss = sum((learnt.sample(index) * weight).sum() for index, weight in enumerate(weights))
        loss.backward()
        learnt.learn(target)

        torch.manual_seed(step)
        loss = torch.zeros(())
        for alpha, weight in zip(alphas, weights, strict=True):
            noise = torch.rand_like(alpha)
            loss = loss + (hard_concrete(alpha, noise, temperature=TEMPERATURE) * weight).sum()
        cost = 0.4 + sum(price * open_share(alpha.double()).sum() for price, alpha in zip(PRICES, alphas, strict=True))
        if factor is None:
            loss = loss + multipliers[0] * (cost - target) + multipliers[1] * (cost - target) ** 2
        else:
            loss = loss + factor * cost
        loss.backward()
        for optimizer in (descent, ascent):
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for alpha in alphas:
                alpha.clamp_(-FARTHEST, FARTHEST)
        for found, expected in zip(learnt.log_alphas, alphas, strict=True):
            assert torch.allclose(found, expected, atol=2e-4), step
    assert float(learnt.log_alphas[0][-1].detach()) < 1 < 2 < float(learnt.log_alphas[0][0].detach())
    stored = learnt.state()["multipliers"]
    assert torch.allclose(stored, multipliers.detach(), atol=1e-4)
    assert bool(stored.any()) == (factor is None)


def test_without_noise_gates_are_settled() -> None:
    learnt = gates()
    assert learnt.settled(0).tolist() == [1.0] * 4
    with torch.no_grad():
        learnt.log_alphas[0].copy_(torch.tensor([-3.0, 0.0, 1.0, 3.0]))
    assert torch.equal(learnt.settled(0), hard_concrete(learnt.log_alphas[0].detach()))
    assert not learnt.settled(0).requires_grad
    torch.manual_seed(0)
    learnt.draw()
    drawn = learnt.sample(0)
    assert drawn.requires_grad
    assert torch.equal(drawn, learnt.sample(0))  # within a pass
    learnt.draw()
    assert not torch.equal(drawn, learnt.sample(0))


class Scaler:
    """A gradient scaler's factor."""

    scale = 8.0

    def get_scale(self) -> float:
        return self.scale


def test_a_gradient_scaler_does_not_change_what_is_learnt() -> None:
    plain, scaled = gates(), gates()
    scaled.scaler = Scaler()
    for learnt, factor in ((plain, 1.0), (scaled, 8.0)):
        for part in (1.0, 2.0):  # two micro-batches
            torch.manual_seed(int(part))
            learnt.draw()
            (factor * part * learnt.sample(0).square().sum()).backward()
        learnt.learn(0.5)
    assert torch.equal(plain.log_alphas[0], scaled.log_alphas[0])


def test_a_step_that_overflowed_is_forgotten() -> None:
    plain, scaled = gates(), gates()
    scaled.scaler = Scaler()
    (scaled.sample(0) * torch.tensor([torch.inf, 1.0, 1.0, 1.0])).sum().backward()  # no step of the optimizer follows
    scaled.scaler.scale = 4.0
    for learnt, factor in ((plain, 1.0), (scaled, 4.0)):
        torch.manual_seed(0)
        learnt.draw()
        (factor * learnt.sample(0).square().sum()).backward()
        learnt.learn(0.5)
    assert torch.equal(plain.log_alphas[0], scaled.log_alphas[0])


def test_a_gradient_beyond_half_precision_leaves_the_penalty() -> None:
    learnt, without = gates(factor=1.0), gates(factor=1.0)
    torch.manual_seed(0)
    learnt.draw()
    (learnt.sample(1) * torch.inf).sum().backward()
    assert not learnt.log_alphas[1].grad.isfinite().all()
    for one in (learnt, without):
        one.learn(0.5)
    assert torch.equal(learnt.log_alphas[1], without.log_alphas[1])


def test_gates_do_not_run_away() -> None:
    learnt = gates(factor=1e6, learning_rate=3.0)
    for _ in range(10):
        learnt.learn(0.5)
    assert learnt.log_alphas[0].tolist() == pytest.approx([-FARTHEST] * 4)


def test_state_goes_on_bit_for_bit() -> None:
    one, other = gates(), gates()

    def train(learnt: LearntGates, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            learnt.draw()
            (learnt.sample(0).sum() - learnt.sample(1).square().sum()).backward()
            learnt.learn(0.6)

    train(one, range(3))
    other.load_state(one.state())
    for learnt in (one, other):
        train(learnt, range(3, 6))
    for name, value in one.state().items():
        assert torch.equal(value, other.state()[name]), name


def test_a_state_that_does_not_fit() -> None:
    state = gates().state()
    name = f"{blocks()[0].key}.log_alpha"
    for wrong in ({key: value for key, value in state.items() if key != name}, state | {name: torch.zeros(5)}):
        with pytest.raises(PruningError, match="the stored gates do not fit 4 units"):
            gates().load_state(wrong)
