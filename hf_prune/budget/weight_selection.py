"""Which single weights stay: masks from scores.

All selections are exact in number: what `round` makes of a fraction in integers. Where scores are sharded, each process
has those of its own rows and gets the masks of these, which together are what one process would have chosen: they
exchange nothing but counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..errors import PruningError
from ..shards import WHOLE, Shards, count_true

_HALF = 1 << 15


def kept_count(total: int, sparsity: float) -> int:
    """How many of `total` weights stay where the fraction `sparsity` is removed."""
    return total - round(total * sparsity)


def masks_by_matrix(scores: Iterable[torch.Tensor], sparsity: float, shards: Shards = WHOLE) -> list[torch.Tensor]:
    """In every matrix the same fraction is removed: the lowest scores of each.

    Args:
        scores: one tensor per matrix, of any shape.
        sparsity: fraction to remove.
        shards: the processes that share the matrices.
    """
    return [masks_over_all([score], sparsity, shards)[0] for score in scores]


def masks_over_all(scores: Sequence[torch.Tensor], sparsity: float, shards: Shards = WHOLE) -> list[torch.Tensor]:
    """Of all matrices together a fraction is removed: the lowest scores, wherever they are.

    Args:
        scores: one tensor per matrix, of any shape.
        sparsity: fraction to remove.
        shards: the processes that share the matrices.
    """
    return masks_over(scores, kept_count(count_weights(scores, shards), sparsity), shards)


def count_weights(scores: Sequence[torch.Tensor], shards: Shards = WHOLE) -> int:
    """How many weights some matrices have, on all processes that share them."""
    total = sum(score.numel() for score in scores)
    return int(shards.add_up(torch.tensor(total, device=scores[0].device))) if shards.several else total


def masks_over(scores: Sequence[torch.Tensor], keep: int, shards: Shards = WHOLE) -> list[torch.Tensor]:
    """The `keep` highest scores of all matrices together; of equal ones those that come first.

    Args:
        scores: one tensor per matrix, of any shape; compared in float32.
        keep: how many weights stay, over all of them.
        shards: the processes that share the matrices.

    Returns:
        One bool mask per matrix, True where a weight stays.

    Raises:
        PruningError: a score is not a number, or `keep` is more than there are or negative.
    """
    total = count_weights(scores, shards)
    if not 0 <= keep <= total:
        raise PruningError(f"{keep} weights cannot stay out of {total}.")
    _check_numbers(scores, shards)
    if keep in (0, total):
        return [torch.full_like(score, keep == total, dtype=torch.bool) for score in scores]
    keys = [_sortable(score) for score in scores]
    threshold = _kth_largest(keys, keep, shards)
    masks = [key > threshold for key in keys]
    missing = keep - int(shards.add_up(count_true(masks).sum()))
    ties = [key == threshold for key in keys]
    for mask, tie, number in zip(masks, ties, shards.allotted(count_true(ties), missing), strict=True):
        mask.view(-1)[tie.flatten().nonzero().flatten()[:number]] = True
    return masks


def kth_largest(scores: Sequence[torch.Tensor], k: int, shards: Shards = WHOLE) -> float:
    """The k-th largest value (k from 1) of some tensors together, in float32.

    Several tensors are neither sorted nor put together: two histograms of 65,536 bins each, of the upper and then of
    the lower half of the bits of a float, find it. Of tensors that processes share the histograms are added up.
    """
    _check_numbers(scores, shards)
    key = torch.tensor(_kth_largest([_sortable(score) for score in scores], k, shards), dtype=torch.int32)
    return float((key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32))


def pattern_mask(scores: torch.Tensor, keep: int, group: int, axis: int = -1, shards: Shards = WHOLE) -> torch.Tensor:
    """N:M sparsity: of every `group` weights next to each other along `axis` the `keep` highest stay.

    Args:
        scores: of one matrix; the axis must be a multiple of `group` long.
        keep: N, from 0 to `group`.
        group: M.
        axis: the axis of the inputs, along which hardware multiplies and adds.
        shards: the processes that share the matrix; its groups must not be torn.

    Raises:
        PruningError: the axis is not a multiple of the group, or a score is not a number.
    """
    if scores.shape[axis] % group:
        raise PruningError(
            f"A side of {scores.shape[axis]} cannot be divided into groups of {group}, which the pattern"
            f" {keep}:{group} needs. Leave the matrix out with exclude_modules."
        )
    _check_numbers([scores], shards)
    groups = scores.movedim(axis, -1).unflatten(-1, (-1, group))
    best = groups.topk(keep, dim=-1).indices
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True)
    return kept.flatten(-2).movedim(-1, axis)


def masks_above(scores: Sequence[torch.Tensor], threshold: float, shards: Shards = WHOLE) -> list[torch.Tensor]:
    """Weights whose score is above a threshold stay; how many that are is up to the scores."""
    _check_numbers(scores, shards)
    return [score > threshold for score in scores]


def _sortable(scores: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the floats they stand for: a float's bits, with negative numbers turned round."""
    # Adding zero makes one zero of the two.
    bits = (scores.detach().to(torch.float32) + 0.0).contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _kth_largest(keys: Sequence[torch.Tensor], k: int, shards: Shards) -> int:
    if len(keys) == 1 and not shards.several:  # what torch has is faster, for one tensor
        return int(keys[0].flatten().kthvalue(keys[0].numel() - k + 1).values)
    upper = [(key >> 16) + _HALF for key in keys]
    place, k = _bin_from_above(_histogram(upper, shards), k)
    lower = [key[half == place] & 0xFFFF for key, half in zip(keys, upper, strict=True)]
    rest, _ = _bin_from_above(_histogram(lower, shards), k)
    return ((place - _HALF) << 16) | rest


def _histogram(halves: Sequence[torch.Tensor], shards: Shards) -> torch.Tensor:
    """How often each of the 65,536 values occurs in all tensors together, on the CPU."""
    total = torch.zeros(2 * _HALF, dtype=torch.int64, device=halves[0].device)
    for half in halves:
        total += torch.bincount(half.flatten(), minlength=2 * _HALF).to(total.device)
    return shards.add_up(total).cpu()


def _bin_from_above(counts: torch.Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest, and its number from above in there."""
    above = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(above, k))
    before = int(above[index - 1]) if index else 0
    return len(counts) - 1 - index, k - before


def _check_numbers(scores: Sequence[torch.Tensor], shards: Shards) -> None:
    """Raises a PruningError on every process where one has a score that is not a number."""
    found = shards.add_up(count_true([score.isnan() for score in scores])).cpu()
    if found.any():
        index = int(found.nonzero()[0])
        raise PruningError(
            f"Scores that are not numbers (NaN), first in matrix {index} of shape {tuple(scores[index].shape)}. Has"
            " training diverged? Lower the learning rate, or leave the matrix out with exclude_modules."
        )
