"""Hard-concrete gates against the distribution that they are defined by (Louizos et al. 2018)."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import logistic

from hf_prune.gates import gate_noise, hard_concrete, open_probability

ALPHAS = torch.tensor([-6.0, -2.5, -1.0, 0.0, 0.7, 2.0, 5.0], dtype=torch.float64)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_without_noise_it_is_the_clipped_and_stretched_sigmoid() -> None:
    expected = [min(1.0, max(0.0, sigmoid(float(alpha)) * 1.2 - 0.1)) for alpha in ALPHAS]
    assert hard_concrete(ALPHAS).tolist() == pytest.approx(expected, abs=1e-12)
    assert hard_concrete(ALPHAS, temperature=0.1).tolist() == pytest.approx(expected, abs=1e-12)
    edge = math.log(11)
    assert hard_concrete(torch.tensor([-edge - 1e-3, -edge + 1e-3])).tolist()[0] == 0
    assert hard_concrete(torch.tensor([-edge + 1e-3])).item() > 0
    assert hard_concrete(torch.tensor([edge + 1e-3])).item() == 1


@pytest.mark.parametrize("temperature", [0.33, 2 / 3])
def test_with_noise_it_is_the_closed_form(temperature: float) -> None:
    noise = torch.tensor([0.03, 0.2, 0.4, 0.5, 0.61, 0.9, 0.999], dtype=torch.float64)
    expected = []
    for alpha, drawn in zip(ALPHAS.tolist(), noise.tolist(), strict=True):
        concrete = sigmoid((math.log(drawn) - math.log(1 - drawn) + alpha) / temperature)
        expected.append(min(1.0, max(0.0, concrete * 1.2 - 0.1)))
    assert hard_concrete(ALPHAS, noise, temperature=temperature).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.33, 2 / 3])
def test_probability_of_an_open_gate(temperature: float) -> None:
    """z > 0 if σ(x / β) > 1/12, where x = logit(u) + log α has a logistic distribution around log α."""
    exact = logistic.sf(temperature * math.log((1 / 12) / (11 / 12)), loc=ALPHAS.numpy())
    assert open_probability(ALPHAS, temperature=temperature).tolist() == pytest.approx(exact.tolist(), rel=1e-12)
    even = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    drawn = hard_concrete(ALPHAS[:, None], even.expand(len(ALPHAS), -1), temperature=temperature)
    assert (drawn > 0).double().mean(1).tolist() == pytest.approx(exact.tolist(), abs=1e-4)


def test_gradient_is_that_of_the_samples() -> None:
    alphas = ALPHAS.clone().requires_grad_()
    noise = torch.full_like(ALPHAS, 0.45)
    hard_concrete(alphas, noise).sum().backward()
    step = 1e-6
    numeric = (hard_concrete(ALPHAS + step, noise) - hard_concrete(ALPHAS - step, noise)) / (2 * step)
    assert torch.allclose(alphas.grad, numeric, atol=1e-8)
    assert alphas.grad[0] == alphas.grad[-1] == 0
    assert (alphas.grad[2:5] > 0).all()


def test_noise_has_finite_logarithms() -> None:
    for dtype in (torch.float32, torch.float64):
        noise = gate_noise(torch.zeros(100_000, dtype=dtype))
        assert noise.dtype == dtype
        assert 0 < noise.min() < 1e-3
        assert 1 - 1e-3 < noise.max() < 1
        assert abs(noise.mean() - 0.5) < 0.01
