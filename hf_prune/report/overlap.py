"""How much two runs agree on which weights to remove (Gordon et al. 2020, "Compressing BERT", Figure 3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from .alike import check_alike, check_masks, share_of


@dataclass(frozen=True)
class Overlap:
    """Two masks of one matrix, or of many taken together, as counts.

    Attributes:
        weights: entries of the matrix.
        removed_by_one, removed_by_other: entries that each mask removes.
        removed_by_both: entries that both remove.
        expected_by_both: how many those would be on average if each mask had removed as many, drawn blindly.
    """

    weights: int
    removed_by_one: int
    removed_by_other: int
    removed_by_both: int
    expected_by_both: float

    @property
    def removed_by_either(self) -> int:
        """Entries that at least one of the masks removes."""
        return self.removed_by_one + self.removed_by_other - self.removed_by_both

    @property
    def jaccard(self) -> float:
        """Of the weights that either mask removes, the share that both remove; NaN if none is removed."""
        return share_of(self.removed_by_both, self.removed_by_either)

    @property
    def difference(self) -> float:
        """The share of all weights that one mask keeps and the other removes: the paper's difference of masks.

        The paper gives no formula; this is the reading that fits its text, "changes which weights are pruned by less
        than 6%".
        """
        return share_of(self.removed_by_either - self.removed_by_both, self.weights)

    @property
    def chance_jaccard(self) -> float:
        """`jaccard` at `expected_by_both`: what masks that have nothing to do with each other would come to."""
        either = self.removed_by_one + self.removed_by_other - self.expected_by_both
        return share_of(self.expected_by_both, either)

    @property
    def chance_difference(self) -> float:
        """`difference` at `expected_by_both`."""
        return share_of(self.removed_by_one + self.removed_by_other - 2 * self.expected_by_both, self.weights)


@dataclass(frozen=True)
class MaskOverlap:
    """The overlap of two sets of masks.

    Attributes:
        matrices: parameter name → its overlap.
        total: all matrices together; chance draws inside each matrix, at that matrix's sparsities.
    """

    matrices: Mapping[str, Overlap]
    total: Overlap


def mask_overlap(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> MaskOverlap:
    """Compares which weights two runs remove.

    Args:
        one, other: parameter name → bool mask, True where the weight is kept.

    Raises:
        PruningError: names or shapes differ, or a mask is not a bool tensor.
    """
    check_masks(one)
    check_masks(other)
    check_alike(one, other, "masks")
    matrices = {name: _overlap(mask, other[name]) for name, mask in one.items()}
    return MaskOverlap(matrices, _together(matrices.values()))


def _overlap(one: torch.Tensor, other: torch.Tensor) -> Overlap:
    weights = one.numel()
    kept_by_one, kept_by_other = int(one.count_nonzero()), int(other.count_nonzero())
    kept_by_either = int((one | other.to(one.device)).count_nonzero())
    removed_by_one, removed_by_other = weights - kept_by_one, weights - kept_by_other
    expected = removed_by_one * removed_by_other / weights if weights else 0.0
    return Overlap(weights, removed_by_one, removed_by_other, weights - kept_by_either, expected)


def _together(overlaps: Iterable[Overlap]) -> Overlap:
    rows = list(overlaps)
    return Overlap(
        weights=sum(row.weights for row in rows),
        removed_by_one=sum(row.removed_by_one for row in rows),
        removed_by_other=sum(row.removed_by_other for row in rows),
        removed_by_both=sum(row.removed_by_both for row in rows),
        expected_by_both=math.fsum(row.expected_by_both for row in rows),
    )
