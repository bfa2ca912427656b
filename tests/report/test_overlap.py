from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.errors import PruningError
from hf_prune.report import mask_overlap


def masks(seed: int, sparsity: float, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) >= sparsity for name, shape in shapes.items()}


SHAPES = {"layer.0.query.weight": (6, 5), "layer.0.key.weight": (3, 7), "words.weight": (11, 4)}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), one=st.floats(0, 0.99), other=st.floats(0, 0.99))
def test_shares_are_those_of_sets_of_removed_places(seed: int, one: float, other: float) -> None:
    first, second = masks(seed, one, SHAPES), masks(seed + 1, other, SHAPES)
    found = mask_overlap(first, second)
    places = [
        {(name, *place) for name, mask in side.items() for place in (~mask).nonzero().tolist()}
        for side in (first, second)
    ]
    for name, row in (*found.matrices.items(), (None, found.total)):
        a, b = ({place for place in side if name in (None, place[0])} for side in places)
        weights = sum(mask.numel() for key, mask in first.items() if name in (None, key))
        assert (row.weights, row.removed_by_one, row.removed_by_other) == (weights, len(a), len(b))
        assert row.difference == pytest.approx(len(a ^ b) / weights)
        if a | b:
            assert row.jaccard == pytest.approx(len(a & b) / len(a | b))
        else:
            assert math.isnan(row.jaccard)


def test_chance_is_the_mean_over_blind_draws_in_each_matrix() -> None:
    first, second = masks(0, 0.3, SHAPES), masks(1, 0.8, SHAPES)
    expected = mask_overlap(first, second).total.expected_by_both
    generator = torch.Generator().manual_seed(2)
    drawn = []
    for _ in range(2000):
        shuffled = {
            name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
            for name, mask in second.items()
        }
        drawn.append(mask_overlap(first, shuffled).total.removed_by_both)
    draws = torch.tensor(drawn, dtype=torch.float64)
    assert abs(float(draws.mean()) - expected) < 4 * float(draws.std()) / 2000**0.5


def test_chance_of_equal_sparsities_in_closed_form() -> None:
    kept = torch.arange(1000) >= 600
    row = mask_overlap({"w": kept}, {"w": kept.flip(0)}).total
    assert row.removed_by_both == 200
    assert row.jaccard == pytest.approx(0.2)
    assert row.difference == pytest.approx(0.8)
    assert row.chance_jaccard == pytest.approx(0.36 / 0.84)
    assert row.chance_difference == pytest.approx(2 * 0.6 * 0.4)


def test_a_mask_agrees_with_itself() -> None:
    same = masks(0, 0.5, SHAPES)
    total = mask_overlap(same, same).total
    assert (total.jaccard, total.difference) == (1, 0)
    assert total.chance_jaccard < 0.5


def test_masks_of_another_model_are_refused() -> None:
    with pytest.raises(PruningError, match="only in the first"):
        mask_overlap(masks(0, 0.5, SHAPES), masks(0, 0.5, {"words.weight": (11, 4)}))


def test_weights_are_not_taken_for_masks() -> None:
    with pytest.raises(PruningError, match=r"bool tensor.*float32"):
        mask_overlap({"w": torch.ones(2)}, {"w": torch.ones(2)})
