"""The two estimates of an iteration of Lin et al. 2020 (Section 3.4): the threshold ε, and what is used above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from ..errors import PruningError

UsageRule = Literal["open_rate", "always_closed"]


def smallest_mean(means: Sequence[torch.Tensor], k: int, masks: Sequence[torch.Tensor] | None = None) -> float:
    """ε: the k-th smallest mean activation among the mappings that are left (Section 3.4, substep 1).

    Args:
        means: the mean of max|F| of each mapping, one tensor per block; NaN where nothing was measured, which is
            passed over.
        k: from 1 to the number of mappings that are left.
        masks: bool, of the same shapes, False for mappings that are gone; by default all are left.

    Raises:
        PruningError: k is out of this range.
    """
    left = [values[mask & ~values.isnan()] for values, mask in _with_masks(means, masks)]
    values = torch.cat([torch.empty(0, dtype=torch.float64), *(item.double() for item in left)])
    if not 1 <= k <= len(values):
        raise PruningError(
            f"k={k} asks for the k-th smallest mean activation, but {len(values)} mappings are left and measured; k"
            f" must be from 1 to {len(values)}."
            if len(values)
            else f"k={k} asks for the k-th smallest mean activation, but no mapping is left that was measured."
        )
    return float(values.kthvalue(k).values)


def unused(
    usage: Sequence[torch.Tensor],
    theta: float,
    masks: Sequence[torch.Tensor] | None = None,
    rule: UsageRule = "open_rate",
) -> list[torch.Tensor]:
    """The mappings that go (Section 3.4, substep 3).

    Args:
        usage: the share of mini-batches in which each mapping was no identity, one tensor per block; NaN where none
            was counted, and such mappings stay.
        theta: θ, in (0, 1].
        masks: as for `smallest_mean`; what is gone does not go again.
        rule: "open_rate" takes those with a usage below θ, which is what the paper says; "always_closed" takes those
            with a usage of 0 whatever θ is, which is what the ε-ResNet does.

    Returns:
        Bool tensors, True for what goes.

    Raises:
        PruningError: θ is out of its range, or the rule is unknown.
    """
    if not 0 < theta <= 1:
        raise PruningError(f"theta={theta} must be above 0 and at most 1: it is a share of mini-batches.")
    if rule not in ("open_rate", "always_closed"):
        raise PruningError(f"rule={rule!r} is unknown; it must be 'open_rate' or 'always_closed'.")
    return [
        mask & (values < theta if rule == "open_rate" else values == 0) for values, mask in _with_masks(usage, masks)
    ]


def _with_masks(
    values: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if masks is None:
        masks = [torch.ones_like(item, dtype=torch.bool) for item in values]
    if [item.shape for item in values] != [mask.shape for mask in masks]:
        raise PruningError(
            f"Masks of shapes {[tuple(mask.shape) for mask in masks]} do not fit values of shapes"
            f" {[tuple(item.shape) for item in values]}."
        )
    return list(zip(values, masks, strict=True))
