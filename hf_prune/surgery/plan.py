"""The pruning plan: which units of which blocks stay. Plain data, independent of any tensor of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..anatomy import AttentionLayout, Block, ModelAnatomy, groups_of
from ..anatomy.cut_experts import unequal_counts
from ..errors import PruningError
from ..whole_files import written_whole

PLAN_FILE = "pruning_plan.safetensors"


def layer_key(block: Block) -> str:
    """The name of a block's layer in plans and metadata, independent of the task head ("encoder.layer.3")."""
    return block.key.removesuffix(f".{block.name}")


@dataclass(frozen=True)
class PruningPlan:
    """Which units stay, per block, and which layers go altogether.

    Attributes:
        kept: for each block's key the indices of its kept units in ascending order, counted in the model that the
            plan is applied to. A block that is not named keeps everything.
        removed_layers: names of layers (see `layer_key`) that go whole, with their norms and biases; in the masked
            model such a layer hands its hidden states on as they are. Nothing in them is kept, whatever `kept` says.
    """

    kept: Mapping[str, tuple[int, ...]]
    removed_layers: tuple[str, ...] = ()

    @classmethod
    def from_masks(cls, blocks: Sequence[Block], masks: Sequence[torch.Tensor]) -> PruningPlan:
        """The plan of one mask per block; units with a value other than zero stay, and so does every layer."""
        kept = {}
        for block, mask in zip(blocks, masks, strict=True):
            if mask.shape != (block.units,):
                raise PruningError(f"{block.key}: a mask of shape {tuple(mask.shape)} for {block.units} units.")
            kept[block.key] = tuple(mask.nonzero().flatten().tolist())
        return cls(kept)

    def save(self, folder: Path) -> None:
        """Writes the kept indices, one int32 tensor per block."""
        kept = {key: torch.tensor(units, dtype=torch.int32) for key, units in self.kept.items()}
        about = {"counted_in": "the model that was pruned", "removed_layers": json.dumps(self.removed_layers)}
        with written_whole(folder / PLAN_FILE) as temporary:
            save_file(kept, temporary, metadata=about)

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
        return () if self.removes(block) else self.kept.get(block.key, tuple(range(block.units)))

    def count(self, block: Block) -> int:
        """How many units of a block stay."""
        return len(self.units(block))

    def removes(self, block: Block) -> bool:
        """Whether a block goes with its whole layer."""
        return layer_key(block) in self.removed_layers

    def staying(self, anatomy: ModelAnatomy) -> tuple[Block, ...]:
        """The blocks of the layers that stay."""
        return tuple(block for block in anatomy.blocks if not self.removes(block))

    def changed(self, anatomy: ModelAnatomy) -> set[str]:
        """Keys of the blocks that lose units."""
        return {block.key for block in anatomy.blocks if self.count(block) < block.units}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return {
            "kept": {key: list(units) for key, units in self.kept.items()},
            "removed_layers": list(self.removed_layers),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningPlan:
        """The inverse of `to_dict`."""
        kept = {key: tuple(units) for key, units in data["kept"].items()}
        return cls(kept, tuple(data.get("removed_layers", ())))

    def validate(self, anatomy: ModelAnatomy) -> None:
        """Checks that the plan fits a model.

        Raises:
            PruningError: a block or layer that the model lacks, an index out of range, repeated or unsorted indices,
                fewer units than the block needs, different counts within a group, or a layer that cannot go.
        """
        _check_layers(self.removed_layers, anatomy)
        known = {block.key: block for block in anatomy.blocks}
        for key, units in self.kept.items():
            if key not in known:
                raise PruningError(f"The plan names {key!r}, which the model lacks; it has {', '.join(known)}.")
            _check_units(known[key], units, 0 if self.removes(known[key]) else known[key].minimum)
        for members in groups_of(anatomy.blocks):
            sizes = {self.count(member) for member in members}
            if len(sizes) > 1:
                raise PruningError(f"{members[0].group}: {unequal_counts(sizes)}")


def _check_units(block: Block, units: Sequence[int], minimum: int) -> None:
    if any(not isinstance(unit, int) or not 0 <= unit < block.units for unit in units):
        raise PruningError(f"{block.key}: unit indices must lie in 0 … {block.units - 1}, got {list(units)[:20]}.")
    if any(after <= before for before, after in pairwise(units)):
        raise PruningError(f"{block.key}: unit indices must be in ascending order without repeats.")
    if len(units) < minimum:
        raise PruningError(
            f"{block.key}: the plan keeps {len(units)} units, but at least {minimum} must stay ({block.why_minimum})."
        )


def _check_layers(removed: Sequence[str], anatomy: ModelAnatomy) -> None:
    """Layers that are there, that run once each, and that nothing else in their stack depends on."""
    first_blocks: dict[str, Block] = {}
    for block in anatomy.blocks:
        first_blocks.setdefault(layer_key(block), block)
    unknown = [name for name in removed if name not in first_blocks]
    if unknown or len(set(removed)) < len(removed):
        problem = f"names the layer {unknown[0]!r}, which the model lacks" if unknown else "names a layer twice"
        raise PruningError(f"The plan {problem}; the layers are {', '.join(first_blocks)}.")
    stacks: dict[str, list[str]] = {}
    for name, block in first_blocks.items():
        stacks.setdefault(block.stack, []).append(name)
    for name in removed:
        block = first_blocks[name]
        if block.runs > 1:
            raise PruningError(f"{name} runs {block.runs} times, so it cannot be removed from one place.")
        shares = isinstance(block.layout, AttentionLayout) and block.layout.shared_bias
        if shares and name == stacks[block.stack][0]:
            raise PruningError(f"{name} computes the position biases for all layers after it, so it has to stay.")
    for stack, names in stacks.items():
        if set(names) <= set(removed):
            raise PruningError(f"The plan removes every layer of {stack}; at least one must stay.")
