"""How far training moves weights in the order of their magnitude (Gordon et al. 2020, Table 2, Figures 4 and 7)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import PruningError
from .alike import check_alike, share_of

BINS = 20

_CHUNK = 1 << 20  # weights looked at together: what is counted in float64 is only ever this long

Integers = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Shift:
    """How the order of |w| changed in one matrix, or on average over the weights of many.

    A weight's position is its place in the ascending order of |w| in its matrix, as a share of the matrix's weights;
    weights of equal magnitude share the middle of their places.

    Attributes:
        weights: entries.
        mean: mean distance between a weight's positions before and after, from 0 to 1 (the paper's Table 2).
        std: standard deviation of that distance.
        spearman: Spearman's rank correlation of |w| before and after; NaN where all magnitudes are equal. Over several
            matrices, the mean weighted by their weights.
        stayed: of the weights that magnitude pruning would remove before (the smallest `sparsity` of the matrix and
            those that equal the largest of them), the share that it would remove after, too; NaN if it removes none.
        chance: what `stayed` would be if the order after had nothing to do with the order before.
        by_position: `[BINS]`, mean distance by the position before, the smallest magnitudes first (Figure 7); NaN in a
            bin without weights.
    """

    weights: int
    mean: float
    std: float
    spearman: float
    stayed: float
    chance: float
    by_position: tuple[float, ...]


@dataclass(frozen=True)
class MagnitudeShift:
    """The change of order in every matrix.

    Attributes:
        sparsity: the sparsity that `stayed` is for.
        matrices: parameter name → its shift.
        total: over the weights of all matrices, each with the position in its own.
    """

    sparsity: float
    matrices: Mapping[str, Shift]
    total: Shift


def magnitude_shift(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], sparsity: float = 0.5
) -> MagnitudeShift:
    """Compares the order of |w| before and after training, matrix by matrix.

    Works on the CPU, one matrix at a time, with about 25 bytes per weight of the largest.

    Args:
        before, after: parameter name → weights, of any floating type.
        sparsity: share of each matrix that magnitude pruning would remove, for `stayed`; from 0 to below 1.

    Raises:
        PruningError: names or shapes differ, weights are not floating numbers or NaN, or the sparsity is out of range.
    """
    if not 0 <= sparsity < 1:
        raise PruningError(f"sparsity must lie from 0 to below 1, got {sparsity!r}.")
    check_alike(before, after, "weights")
    sums = {name: _compare(name, weights, after[name], sparsity) for name, weights in before.items()}
    matrices = {name: _as_shift([one]) for name, one in sums.items()}
    return MagnitudeShift(sparsity, matrices, _as_shift(list(sums.values())))


@dataclass
class _Sums:
    """Sums over the weights of one matrix."""

    weights: int
    distance: float
    squared: float
    spearman: float  # times the number of weights
    below_before: int
    below_after: int
    below_both: int
    bin_distance: npt.NDArray[np.float64]
    bin_weights: npt.NDArray[np.int64]


def _compare(name: str, before: torch.Tensor, after: torch.Tensor, sparsity: float) -> _Sums:
    first, second = _doubled_ranks(name, before), _doubled_ranks(name, after)
    count = len(first)
    removed = round(count * sparsity)
    cuts = [np.partition(ranks, removed - 1)[removed - 1] if removed else -1 for ranks in (first, second)]
    below_cut = [ranks <= cut for ranks, cut in zip((first, second), cuts, strict=True)]
    distance = squared = 0.0
    products = np.zeros(3)
    bin_distance, bin_weights = np.zeros(BINS), np.zeros(BINS, dtype=np.int64)
    for one, other in _chunks(first, second):
        moved = np.abs(one - other) / (2 * count)
        distance, squared = distance + float(moved.sum()), squared + float(moved @ moved)
        bins = (one * BINS // (2 * count)).astype(np.int64)
        bin_distance += np.bincount(bins, moved, BINS)
        bin_weights += np.bincount(bins, minlength=BINS)
        one, other = one - (count - 1), other - (count - 1)  # the mean of the doubled ranks, ties or not
        products += one @ other, one @ one, other @ other
    spread = math.sqrt(products[1]) * math.sqrt(products[2])
    return _Sums(
        weights=count,
        distance=distance,
        squared=squared,
        spearman=count * float(products[0] / spread) if spread else math.nan,
        below_before=int(below_cut[0].sum()),
        below_after=int(below_cut[1].sum()),
        below_both=int((below_cut[0] & below_cut[1]).sum()),
        bin_distance=bin_distance,
        bin_weights=bin_weights,
    )


def _doubled_ranks(name: str, weights: torch.Tensor) -> Integers:
    """Twice the rank of each |w|, counted from 0: whole numbers even where weights share the middle of their places."""
    if not weights.is_floating_point():
        raise PruningError(f"The weights of {name!r} must be floating numbers to be ordered, got {weights.dtype}.")
    magnitudes = weights.detach().to("cpu").flatten().abs()
    if bool(magnitudes.isnan().any()):
        raise PruningError(f"The weights of {name!r} hold NaN, which has no place in an order. Was training unstable?")
    if magnitudes.dtype in (torch.float16, torch.bfloat16):
        magnitudes = magnitudes.float()
    count = len(magnitudes)
    dtype = np.int32 if count < 1 << 30 else np.int64
    values, order = torch.sort(magnitudes)
    is_tied = (values[1:] == values[:-1]).numpy()  # with the one before it
    del magnitudes, values
    places: Integers = np.arange(count, dtype=dtype)
    places[1:][is_tied] = 0
    np.maximum.accumulate(places, out=places)  # the first place of the equal ones
    last: Integers = np.arange(count, dtype=dtype)
    last[:-1][is_tied] = count
    np.minimum.accumulate(last[::-1], out=last[::-1])
    places += last
    del last
    ranks: Integers = np.empty(count, dtype)
    ranks[order.numpy()] = places
    return ranks


def _chunks(*arrays: Integers) -> Iterator[list[npt.NDArray[np.float64]]]:
    for start in range(0, len(arrays[0]), _CHUNK):
        yield [array[start : start + _CHUNK].astype(np.float64) for array in arrays]


def _as_shift(parts: Sequence[_Sums]) -> Shift:
    weights = sum(part.weights for part in parts)
    mean = share_of(math.fsum(part.distance for part in parts), weights)
    variance = share_of(math.fsum(part.squared for part in parts), weights) - mean**2
    before = sum(part.below_before for part in parts)
    by_chance = math.fsum(
        share_of(part.below_before * part.below_after, part.weights) for part in parts if part.weights
    )
    distances = sum((part.bin_distance for part in parts), np.zeros(BINS))
    counts = sum((part.bin_weights for part in parts), np.zeros(BINS, dtype=np.int64))
    return Shift(
        weights=weights,
        mean=mean,
        std=math.sqrt(max(variance, 0.0)),
        spearman=share_of(math.fsum(part.spearman for part in parts if part.weights), weights),
        stayed=share_of(sum(part.below_both for part in parts), before),
        chance=share_of(by_chance, before),
        by_position=tuple(share_of(*pair) for pair in zip(distances.tolist(), counts.tolist(), strict=True)),
    )
