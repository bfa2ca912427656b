"""The pruning plan: which units of which blocks stay. Plain data, independent of any tensor of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from ..anatomy import Block, ModelAnatomy
from ..errors import PruningError


@dataclass(frozen=True)
class PruningPlan:
    """Which units stay, per block.

    Attributes:
        kept: for each block's key the indices of its kept units in ascending order, counted in the model that the
            plan is applied to. A block that is not named keeps everything.
    """

    kept: Mapping[str, tuple[int, ...]]

    @classmethod
    def from_masks(cls, blocks: Sequence[Block], masks: Sequence[torch.Tensor]) -> PruningPlan:
        """The plan of one mask per block; units with a value other than zero stay."""
        kept = {}
        for block, mask in zip(blocks, masks, strict=True):
            if mask.shape != (block.units,):
                raise PruningError(f"{block.key}: a mask of shape {tuple(mask.shape)} for {block.units} units.")
            kept[block.key] = tuple(mask.nonzero().flatten().tolist())
        return cls(kept)

    def masks(self, blocks: Sequence[Block]) -> list[torch.Tensor]:
        """The plan as one bool mask per block."""
        masks = []
        for block in blocks:
            mask = torch.zeros(block.units, dtype=torch.bool)
            mask[list(self.units(block))] = True
            masks.append(mask)
        return masks

    def units(self, block: Block) -> tuple[int, ...]:
        """The kept units of a block."""
        return self.kept.get(block.key, tuple(range(block.units)))

    def count(self, block: Block) -> int:
        """How many units of a block stay."""
        return len(self.units(block))

    def changed(self, anatomy: ModelAnatomy) -> set[str]:
        """Keys of the blocks that lose units."""
        return {block.key for block in anatomy.blocks if self.count(block) < block.units}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return {"kept": {key: list(units) for key, units in self.kept.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningPlan:
        """The inverse of `to_dict`."""
        return cls({key: tuple(units) for key, units in data["kept"].items()})

    def validate(self, anatomy: ModelAnatomy) -> None:
        """Checks that the plan fits a model.

        Raises:
            PruningError: a block that the model lacks, an index out of range, repeated or unsorted indices, or fewer
                units than the block needs.
        """
        known = {block.key: block for block in anatomy.blocks}
        for key, units in self.kept.items():
            if key not in known:
                raise PruningError(f"The plan names {key!r}, which the model lacks; it has {', '.join(known)}.")
            block = known[key]
            if any(not isinstance(unit, int) or not 0 <= unit < block.units for unit in units):
                raise PruningError(f"{key}: unit indices must lie in 0 … {block.units - 1}, got {list(units)[:20]}.")
            if any(after <= before for before, after in pairwise(units)):
                raise PruningError(f"{key}: unit indices must be in ascending order without repeats.")
            if len(units) < block.minimum:
                raise PruningError(
                    f"{key}: the plan keeps {len(units)} units, but at least {block.minimum} must stay"
                    " (the generation cache reads its length there)."
                )
