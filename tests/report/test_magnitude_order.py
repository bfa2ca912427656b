from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from hf_prune.errors import PruningError
from hf_prune.report import Shift, magnitude_order, magnitude_shift
from hf_prune.report.magnitude_order import BINS

SHAPES = {"layer.0.query.weight": (40, 31), "words.weight": (97, 16)}


def weights(seed: int, dtype: torch.dtype = torch.float32, ties: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {name: ((value * 4).round() if ties else value).to(dtype) for name, value in found.items()}


def trained(before: dict[str, torch.Tensor], much: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(99)
    return {name: value + much * torch.randn(value.shape, generator=generator) for name, value in before.items()}


def ranks(values: torch.Tensor) -> np.ndarray:
    """Places counted from 0, as SciPy averages them over ties."""
    return stats.rankdata(values.double().abs().flatten().numpy()) - 1


def distances(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    return np.abs(ranks(before) - ranks(after)) / before.numel()


def check(found: Shift, distance: np.ndarray) -> None:
    assert found.weights == len(distance)
    assert found.mean == pytest.approx(distance.mean(), rel=1e-12)
    assert found.std == pytest.approx(distance.std(), rel=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_moves_and_correlation_are_scipys(ties: bool) -> None:
    before = weights(0, ties=ties)
    after = {name: value.round() if ties else value for name, value in trained(before, 0.7).items()}
    found = magnitude_shift(before, after)
    correlations = {}
    for name in SHAPES:
        pair = before[name].abs().flatten().numpy(), after[name].abs().flatten().numpy()
        correlations[name] = stats.spearmanr(*pair).statistic
        check(found.matrices[name], distances(before[name], after[name]))
        assert found.matrices[name].spearman == pytest.approx(correlations[name], rel=1e-9)
    check(found.total, np.concatenate([distances(before[name], after[name]) for name in SHAPES]))
    sizes = [before[name].numel() for name in SHAPES]
    assert found.total.spearman == pytest.approx(np.average([correlations[name] for name in SHAPES], weights=sizes))


def test_the_papers_example() -> None:
    """A weight that goes from place 59 of 100 to place 63 has moved 4 %; four others make room by one place each."""
    before = torch.arange(1.0, 101)
    after = before.clone()
    after[58] = 63.5
    shift = magnitude_shift({"w": before}, {"w": after}).total
    assert shift.mean == pytest.approx((0.04 + 4 * 0.01) / 100)
    assert shift.by_position[58 * BINS // 100] == pytest.approx((0.04 + 0.01) / 5)


def test_signs_do_not_matter() -> None:
    before = weights(0)
    shift = magnitude_shift(before, {name: -value for name, value in before.items()}, sparsity=0.3).total
    assert (shift.mean, shift.std, shift.stayed) == (0, 0, 1)
    assert shift.spearman == pytest.approx(1)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_what_stays_below_is_counted_by_sorting(sparsity: float) -> None:
    before = weights(0)
    after = trained(before, 0.3)
    found = magnitude_shift(before, after, sparsity)
    both = all_before = 0
    by_chance = 0.0
    for name in SHAPES:
        removed = round(sparsity * before[name].numel())
        sides = [set(side[name].abs().flatten().argsort()[:removed].tolist()) for side in (before, after)]
        assert found.matrices[name].stayed == pytest.approx(len(sides[0] & sides[1]) / removed)
        both, all_before = both + len(sides[0] & sides[1]), all_before + removed
        by_chance += removed**2 / before[name].numel()
    assert found.total.stayed == pytest.approx(both / all_before)
    assert found.total.chance == pytest.approx(by_chance / all_before)
    assert found.total.chance == pytest.approx(sparsity, abs=1e-3)
    assert found.total.chance < found.total.stayed < 1


def test_weights_already_removed_go_together() -> None:
    """Below the sparsity that is there, all zeros are candidates, whichever of them a sort would put first."""
    before = torch.tensor([0.0, 0, 0, 0, 1, 2, 3, 4])
    after = torch.tensor([0.0, 0, 0, 0, 2, 1, 3, 4])
    shift = magnitude_shift({"w": before}, {"w": after}, sparsity=0.25).total
    assert (shift.stayed, shift.chance) == (1, 0.5)
    assert shift.mean == pytest.approx(2 / 8 / 8)


def test_bins_are_of_the_position_before() -> None:
    before = weights(0)
    after = trained(before, 0.5)
    sums, counts = np.zeros(BINS), np.zeros(BINS)
    for name in SHAPES:
        for place, distance in zip(ranks(before[name]), distances(before[name], after[name]), strict=True):
            index = int(place / before[name].numel() * BINS)
            sums[index] += distance
            counts[index] += 1
    np.testing.assert_allclose(magnitude_shift(before, after).total.by_position, sums / counts, rtol=1e-9)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(0)
    after = trained(before, 0.5)
    whole = magnitude_shift(before, after)
    monkeypatch.setattr(magnitude_order, "_CHUNK", 7)
    parts = magnitude_shift(before, after)
    assert parts.total.mean == pytest.approx(whole.total.mean, rel=1e-12)
    assert parts.total.spearman == pytest.approx(whole.total.spearman, rel=1e-12)
    assert parts.total.stayed == whole.total.stayed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_ordered_by_their_own_values(dtype: torch.dtype) -> None:
    before, after = weights(0, dtype), weights(1, dtype)
    name = "words.weight"
    check(magnitude_shift(before, after).matrices[name], distances(before[name], after[name]))


def test_nothing_removed_and_nothing_that_differs_are_nan() -> None:
    same = {"w": torch.ones(4)}
    shift = magnitude_shift(same, same, sparsity=0).total
    assert shift.mean == 0
    assert math.isnan(shift.stayed)
    assert math.isnan(shift.spearman)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0])
def test_a_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(PruningError, match="sparsity must lie from 0 to below 1"):
        magnitude_shift(weights(0), weights(1), sparsity)


def test_nan_and_integers_are_refused_by_name() -> None:
    broken = weights(0)
    broken["words.weight"][3, 2] = math.nan
    with pytest.raises(PruningError, match=r"'words\.weight' hold NaN"):
        magnitude_shift(weights(0), broken)
    with pytest.raises(PruningError, match=r"'w' must be floating numbers.*int64"):
        magnitude_shift({"w": torch.arange(3)}, {"w": torch.arange(3)})


def test_other_names_are_refused() -> None:
    with pytest.raises(PruningError, match="weights must have the same names"):
        magnitude_shift(weights(0), {"words.weight": torch.ones(97, 16)})
