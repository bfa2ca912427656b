"""Which residual mappings an iteration removes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

_ROUNDING = 1e-9  # of sums of shares


@dataclass(frozen=True)
class Gates:
    """What is known of one group of gates: the heads of one attention, or a sublayer as a whole.

    Attributes:
        unused: bool `[gates]`, those that were open too seldom.
        usage: share of the mini-batches in which each was open; NaN where it was never counted.
        means: their mean activations, in units of the ε of their kind; NaN where it was never measured.
        kept: bool, those that are not removed yet.
        cost: what one costs, as a share of the dense model's cost.
        minimum: how many must stay.
    """

    unused: torch.Tensor
    usage: torch.Tensor
    means: torch.Tensor
    kept: torch.Tensor
    cost: float
    minimum: int = 0


class Candidate(NamedTuple):
    """A gate that may go; what comes first in the order goes first."""

    used: bool
    usage: float
    mean: float
    group: int
    gate: int


def to_close(groups: Sequence[Gates], *, most: float, wanted: float) -> list[torch.Tensor]:
    """The gates that go now: unused ones, the least used first, but never nothing and never everything.

    Where none that may go is unused the least used one goes, so that every iteration makes progress; of several that
    are used alike the one with the smallest mean activation. One gate stays in the model whatever happens.

    Args:
        groups: the gates.
        most: share of the dense cost that may go at once; the first that goes may cost more.
        wanted: share of the dense cost that is to go until the goal is reached; once that is gone nothing else goes.

    Returns:
        One bool tensor per group, True where a gate goes.
    """
    closed = [torch.zeros_like(group.kept) for group in groups]
    left = [int(group.kept.sum()) for group in groups]
    gone = 0.0
    for candidate in sorted(_candidates(groups)):
        group, cost = candidate.group, groups[candidate.group].cost
        enough = gone >= wanted - _ROUNDING
        if enough or (gone and (candidate.used or gone + cost > most + _ROUNDING)):
            break
        if left[group] > groups[group].minimum and sum(left) > 1:
            closed[group][candidate.gate] = True
            left[group] -= 1
            gone += cost
    return closed


def _candidates(groups: Sequence[Gates]) -> list[Candidate]:
    """What is left; of what was never measured or counted nothing is known, and it stays."""
    return [
        Candidate(not group.unused[gate], float(group.usage[gate]), float(group.means[gate]), index, gate)
        for index, group in enumerate(groups)
        for gate in (group.kept & ~group.usage.isnan() & ~group.means.isnan()).nonzero().flatten().tolist()
    ]
