from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import pytest
import torch
from scipy import stats

from hf_prune.strategies.single_shot.gumbel import choose_top, gumbel_noise, relaxed_top

LOGITS = torch.tensor([0.2, 1.4, 0.9, -0.5, 0.6], dtype=torch.float64)


@pytest.mark.parametrize("keep", [0, 1, 3, 5])
def test_exactly_as_many_are_chosen_and_the_mask_is_exact(keep: int) -> None:
    mask = choose_top(LOGITS.requires_grad_(), keep)
    assert sorted(mask.tolist()) == [0.0] * (5 - keep) + [1.0] * keep
    assert set(mask.detach().nonzero().flatten().tolist()) == set(LOGITS.topk(keep).indices.tolist())


def test_noise_has_the_gumbel_distribution() -> None:
    noise = gumbel_noise((4000,), torch.Generator().manual_seed(0))
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 0.01


def test_the_set_has_the_law_of_drawing_one_after_the_other_without_replacement() -> None:
    keep, draws = 2, 3000
    weights = LOGITS.detach().exp().tolist()
    law: Counter[tuple[int, ...]] = Counter()
    for order in permutations(range(5), keep):
        left, chance = sum(weights), 1.0
        for unit in order:
            chance *= weights[unit] / left
            left -= weights[unit]
        law[tuple(sorted(order))] += chance  # type: ignore[assignment]
    assert math.isclose(sum(law.values()), 1.0)
    generator = torch.Generator().manual_seed(0)
    found: Counter[tuple[int, ...]] = Counter()
    for noise in gumbel_noise((draws, 5), generator):
        mask = choose_top(LOGITS.detach() + noise, keep)
        found[tuple(mask.nonzero().flatten().tolist())] += 1
    sets = sorted(law)
    observed, expected = [found[each] for each in sets], [draws * law[each] for each in sets]
    assert stats.chisquare(observed, expected).pvalue > 0.01
    even = [draws / len(sets)] * len(sets)
    assert stats.chisquare(observed, even).pvalue < 1e-6  # the test can tell


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_gradient_is_that_of_successive_softmaxes(temperature: float) -> None:
    logits = LOGITS.detach().requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    (found,) = torch.autograd.grad((choose_top(logits, 3, temperature) * weights).sum(), logits)

    def value(point: torch.Tensor) -> float:
        """Σ weights · the sum of three softmaxes, each of which has its predecessors' shares taken out."""
        total, now = [0.0] * 5, point.tolist()
        for _ in range(3):
            powers = [math.exp(each / temperature) for each in now]
            shares = [each / sum(powers) for each in powers]
            total = [sum(pair) for pair in zip(total, shares, strict=True)]
            now = [each + math.log(1 - share) for each, share in zip(now, shares, strict=True)]
        return sum(each * weight for each, weight in zip(total, weights.tolist(), strict=True))

    step = 1e-6
    for unit in range(5):
        shift = torch.zeros(5, dtype=torch.float64).index_fill(0, torch.tensor(unit), step)
        slope = (value(logits.detach() + shift) - value(logits.detach() - shift)) / (2 * step)
        assert found[unit].item() == pytest.approx(slope, abs=1e-7)


def test_the_relaxation_sums_to_the_count_and_nears_the_mask() -> None:
    assert relaxed_top(LOGITS.detach(), 3).sum().item() == pytest.approx(3)
    torch.testing.assert_close(
        relaxed_top(LOGITS.detach(), 2, temperature=0.02), choose_top(LOGITS.detach(), 2), atol=1e-4, rtol=0
    )


def test_one_that_is_certain_leaves_no_infinity() -> None:
    logits = torch.tensor([80.0, 0.0, -80.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(choose_top(logits, 2)[1], logits)
    assert gradient.isfinite().all()
