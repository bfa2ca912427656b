"""Which single weights stay: masks from scores.

All selections are exact in number: what `round` makes of a fraction in integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..errors import PruningError

_HALF = 1 << 15


def kept_count(total: int, sparsity: float) -> int:
    """How many of `total` weights stay where the fraction `sparsity` is removed."""
    return total - round(total * sparsity)


def masks_by_matrix(scores: Iterable[torch.Tensor], sparsity: float) -> list[torch.Tensor]:
    """In every matrix the same fraction is removed: the lowest scores of each.

    Args:
        scores: one tensor per matrix, of any shape.
        sparsity: fraction to remove.
    """
    return [masks_over([score], kept_count(score.numel(), sparsity))[0] for score in scores]


def masks_over_all(scores: Sequence[torch.Tensor], sparsity: float) -> list[torch.Tensor]:
    """Of all matrices together a fraction is removed: the lowest scores, wherever they are.

    Args:
        scores: one tensor per matrix, of any shape.
        sparsity: fraction to remove.
    """
    return masks_over(scores, kept_count(sum(score.numel() for score in scores), sparsity))


def masks_over(scores: Sequence[torch.Tensor], keep: int) -> list[torch.Tensor]:
    """The `keep` highest scores of all matrices together; of equal ones those that come first.

    Args:
        scores: one tensor per matrix, of any shape; compared in float32.
        keep: how many weights stay, over all of them.

    Returns:
        One bool mask per matrix, True where a weight stays.

    Raises:
        PruningError: a score is not a number, or `keep` is more than there are or negative.
    """
    total = sum(score.numel() for score in scores)
    if not 0 <= keep <= total:
        raise PruningError(f"{keep} weights cannot stay out of {total}.")
    if keep in (0, total):
        _check_numbers(scores)
        return [torch.full_like(score, keep == total, dtype=torch.bool) for score in scores]
    keys = [_sortable(score) for score in scores]
    threshold = _kth_largest(keys, keep)
    masks = [key > threshold for key in keys]
    missing = keep - sum(int(mask.count_nonzero()) for mask in masks)
    for key, mask in zip(keys, masks, strict=True):
        if missing:
            ties = (key == threshold).flatten().nonzero().flatten()[:missing]
            mask.view(-1)[ties] = True
            missing -= len(ties)
    return masks


def kth_largest(scores: Sequence[torch.Tensor], k: int) -> float:
    """The k-th largest value (k from 1) of some tensors together, in float32.

    Several tensors are neither sorted nor put together: two histograms of 65,536 bins each, of the upper and then of
    the lower half of the bits of a float, find it.
    """
    key = torch.tensor(_kth_largest([_sortable(score) for score in scores], k), dtype=torch.int32)
    return float((key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32))


def pattern_mask(scores: torch.Tensor, keep: int, group: int, axis: int = -1) -> torch.Tensor:
    """N:M sparsity: of every `group` weights next to each other along `axis` the `keep` highest stay.

    Args:
        scores: of one matrix; the axis must be a multiple of `group` long.
        keep: N, from 0 to `group`.
        group: M.
        axis: the axis of the inputs, along which hardware multiplies and adds.

    Raises:
        PruningError: the axis is not a multiple of the group, or a score is not a number.
    """
    if scores.shape[axis] % group:
        raise PruningError(
            f"A side of {scores.shape[axis]} cannot be divided into groups of {group}, which the pattern"
            f" {keep}:{group} needs. Leave the matrix out with exclude_modules."
        )
    _check_numbers([scores])
    groups = scores.movedim(axis, -1).unflatten(-1, (-1, group))
    best = groups.topk(keep, dim=-1).indices
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True)
    return kept.flatten(-2).movedim(-1, axis)


def masks_above(scores: Sequence[torch.Tensor], threshold: float) -> list[torch.Tensor]:
    """Weights whose score is above a threshold stay; how many that are is up to the scores."""
    _check_numbers(scores)
    return [score > threshold for score in scores]


def _sortable(scores: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the floats they stand for: a float's bits, with negative numbers turned round."""
    _check_numbers([scores])
    # Adding zero makes one zero of the two.
    bits = (scores.detach().to(torch.float32) + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _kth_largest(keys: Sequence[torch.Tensor], k: int) -> int:
    if len(keys) == 1:  # what torch has is faster, for one tensor
        return int(keys[0].flatten().kthvalue(keys[0].numel() - k + 1).values)
    upper = [(key >> 16) + _HALF for key in keys]
    place, k = _bin_from_above(_histogram(upper), k)
    lower = [key[half == place] & 0xFFFF for key, half in zip(keys, upper, strict=True)]
    rest, _ = _bin_from_above(_histogram(lower), k)
    return ((place - _HALF) << 16) | rest


def _histogram(halves: Sequence[torch.Tensor]) -> torch.Tensor:
    """How often each of the 65,536 values occurs in all tensors together."""
    return torch.stack([torch.bincount(half.flatten(), minlength=2 * _HALF).cpu() for half in halves]).sum(0)


def _bin_from_above(counts: torch.Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest, and its number from above in there."""
    above = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(above, k))
    before = int(above[index - 1]) if index else 0
    return len(counts) - 1 - index, k - before


def _check_numbers(scores: Sequence[torch.Tensor]) -> None:
    for index, score in enumerate(scores):
        if score.isnan().any():
            raise PruningError(
                f"Scores that are not numbers (NaN), first in matrix {index} of shape {tuple(score.shape)}. Has"
                " training diverged? Lower the learning rate, or leave the matrix out with exclude_modules."
            )
