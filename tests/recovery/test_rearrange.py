"""The fast rearrangement against the greedy loop as the paper words it, and what it may never do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune import PruningError
from hf_prune.recovery import rearrange_mask
from hf_prune.recovery.rearrange import rearrange_with_gram


@st.composite
def masks_and_gradients(draw: st.DrawFn, values: st.SearchStrategy[float]) -> tuple[torch.Tensor, torch.Tensor]:
    units, examples = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    mask = draw(st.lists(st.booleans(), min_size=units, max_size=units))
    rows = st.lists(values, min_size=units, max_size=units)
    gradients = draw(st.lists(rows, min_size=examples, max_size=examples))
    return torch.tensor(mask), torch.tensor(gradients, dtype=torch.float64)


# Whole numbers have exact sums, so ties are ties in both forms; other numbers are kept apart by their number.
whole = st.integers(-5, 5).map(float)
real = st.floats(-3, 3, width=32)


def fisher_loss(mask: torch.Tensor, gradients: torch.Tensor) -> float:
    """‖Σ_{i pruned} g_i‖²."""
    return gradients[:, ~mask].sum(1).square().sum().item()


def greedy(mask: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Every kept unit, from the least important one up, joins the pruned ones; the best to release leaves them."""
    importance = gradients.square().sum(0)
    pruned = [unit for unit in range(len(mask)) if not mask[unit]]
    if not pruned:
        return mask
    kept = [unit for unit in range(len(mask)) if mask[unit]]
    for unit in sorted(kept, key=lambda unit: (importance[unit].item(), unit)):
        pruned = sorted([*pruned, unit])
        losses = [
            gradients[:, [other for other in pruned if other != one]].sum(1).square().sum().item() for one in pruned
        ]
        pruned.remove(pruned[losses.index(min(losses))])
    result = torch.ones(len(mask), dtype=torch.bool)
    result[pruned] = False
    return result


@settings(max_examples=300, deadline=None)
@given(masks_and_gradients(whole))
def test_equals_the_greedy_loop(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    mask, gradients = case
    assert torch.equal(rearrange_mask(mask, gradients), greedy(mask, gradients))


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_greedy_loop_on_random_gradients(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(7, 30, generator=generator, dtype=torch.float64) + 0.3
    mask = torch.rand(30, generator=generator) < 0.5
    assert torch.equal(rearrange_mask(mask, gradients), greedy(mask, gradients))


@settings(max_examples=200, deadline=None)
@given(masks_and_gradients(real))
def test_keeps_the_count_and_never_raises_the_loss(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    mask, gradients = case
    result = rearrange_mask(mask, gradients)
    assert result.dtype == torch.bool
    assert result.sum() == mask.sum()
    before, after = fisher_loss(mask, gradients), fisher_loss(result, gradients)
    assert after <= before + 1e-9 * (1 + gradients.square().sum().item())


def test_exchanges_units_that_matter_only_together() -> None:
    # Units 0 and 1 cancel each other out; unit 2 is the least important one by itself.
    gradients = torch.tensor([[3.0, -3.0, 1.0]])
    mask = torch.tensor([True, False, False])
    assert rearrange_mask(mask, gradients).tolist() == [False, False, True]


def test_any_mask_and_any_matrix_with_the_same_gram_will_do() -> None:
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(50, 12, generator=generator, dtype=torch.float64)
    mask = torch.tensor([0.0, 1.0, 0.3, -2.0] * 3)
    expected = rearrange_mask(mask != 0, gradients)
    assert torch.equal(rearrange_mask(mask, gradients), expected)
    assert torch.equal(rearrange_mask(mask, torch.linalg.qr(gradients).R), expected)
    assert torch.equal(rearrange_with_gram(mask, gradients.T @ gradients), expected)
    assert int(expected.sum()) == 9


@pytest.mark.parametrize("value", [0, 1])
def test_nothing_to_exchange(value: int) -> None:
    mask = torch.full((5,), value)
    assert torch.equal(rearrange_mask(mask, torch.randn(3, 5)), mask.bool())


@pytest.mark.parametrize(
    ("mask", "gradients", "message"),
    [
        (torch.ones(3), torch.ones(2, 4), r"shape \(3,\) does not fit gradients of shape \(2, 4\)"),
        (torch.ones(2, 2), torch.ones(2, 2), "does not fit"),
        (torch.ones(3), torch.ones(3), "does not fit"),
        (torch.ones(2), torch.tensor([[1.0, torch.nan]]), "NaN or infinite"),
        (torch.ones(2), torch.tensor([[1.0, torch.inf]]), "NaN or infinite"),
    ],
)
def test_bad_input(mask: torch.Tensor, gradients: torch.Tensor, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        rearrange_mask(mask, gradients)
