"""How many weights of each matrix stay where their learnt scores say which matrices matter more."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import PruningError
from ..shards import WHOLE, Shards
from .weight_selection import kept_count


def allocate_by_score(
    scores: Sequence[torch.Tensor] | torch.Tensor, keep: float, temperature: float = 1.0, shards: Shards = WHOLE
) -> list[float]:
    """The fraction of each matrix that stays, in proportion to its mean score (Jiang et al. 2023, Eq. 4).

    level_l = c · mean(σ(S_l / temperature)), at most 1, where c is such that the levels keep the fraction `keep` of all
    weights together; what a matrix that is kept whole cannot take goes to the others. With the paper's own
    c = keep · L / Σ mean too little is kept as soon as a level is capped.

    Args:
        scores: S of every matrix that shares a level in the paper (one kind, all layers); of any shapes.
        keep: fraction of all their weights to keep, from 0 to 1.
        temperature: the larger, the more alike the levels.
        shards: the processes that share the matrices.

    Returns:
        One level per matrix, each a whole number of weights: `round(level * numel)` weights stay, and these add up to
        what `keep` makes of all weights.

    Raises:
        PruningError: `keep` or `temperature` out of range, or a score that is not a number.
    """
    if not 0 <= keep <= 1:
        raise PruningError(f"keep={keep} must lie in [0, 1]: it is the fraction of the weights to keep.")
    if not temperature > 0:
        raise PruningError(f"temperature={temperature} must be above 0.")
    found = torch.tensor([[score.numel(), 0.0] for score in scores], dtype=torch.float64, device=scores[0].device)
    for row, score in zip(found, scores, strict=True):
        row[1] = torch.sigmoid(score.double() / temperature).sum()
    sizes, sums = shards.add_up(found).cpu().unbind(1)
    means = sums / sizes
    if means.isnan().any():
        raise PruningError("The scores hold values that are not numbers (NaN).")
    total = kept_count(int(sizes.sum()), 1 - keep)
    counts = _whole(_filled(means, sizes, total) * sizes, sizes, total)
    return [count / int(size) if size else 0.0 for count, size in zip(counts, sizes, strict=True)]


def _filled(means: torch.Tensor, sizes: torch.Tensor, total: int) -> torch.Tensor:
    """Levels min(1, c · mean) with Σ level · size = total: matrices reach 1 in the order of their means."""
    levels = torch.ones_like(means)
    order = means.argsort(descending=True)
    for full in range(len(order) + 1):
        rest = order[full:]
        left = total - float(sizes[order[:full]].sum())
        weight = float((means[rest] * sizes[rest]).sum())
        factor = left / weight if weight else 0.0
        if not len(rest) or factor * float(means[rest[0]]) <= 1:
            levels[rest] = factor * means[rest]
            break
    return levels.clamp(0, 1)


def _whole(wanted: torch.Tensor, sizes: torch.Tensor, total: int) -> list[int]:
    """Whole numbers next to the wanted ones that add up to `total`: the largest remainders are rounded up."""
    counts = torch.minimum(wanted.floor(), sizes)
    missing = total - int(counts.sum())
    room = (counts < sizes).double()
    order = ((wanted - counts) * room - (1 - room)).argsort(descending=True, stable=True)
    counts[order[:missing]] += 1
    return [int(count) for count in counts]
