"""Exactness of the cut: the masked model equals the shrunk one, and a wrong cut does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from random_models import Case, random_batch, random_model
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy import ModelAnatomy, linear_at
from hf_prune.gates import UnitGates
from hf_prune.surgery import PruningPlan, outputs, shrink_model

TOLERANCE = 1e-4
# The masks must change what the model computes by this many times the tolerance, or the comparison proves nothing.
CONTRAST = 1000
# Shares of the units that stay, block after block; nothing at all is among them.
_SHARES = (0.5, 0.25, 0.0, 0.75, 0.3, 0.0)


@dataclass(frozen=True)
class CutCheck:
    """Largest differences of any output value.

    Attributes:
        shrunk: between masked and shrunk.
        dense: between masked and dense.
        wrong: between masked and wrongly shrunk, by mistake.
    """

    case: Case
    shrunk: float
    dense: float
    wrong: dict[str, float]

    @property
    def holds(self) -> bool:
        """Whether the cut is exact, the masks matter and every mistake is noticed."""
        noticed = all(difference > TOLERANCE for difference in self.wrong.values())
        return self.shrunk <= TOLERANCE and self.dense >= CONTRAST * TOLERANCE and noticed


def check_cut(case: Case) -> CutCheck:
    """Masks and shrinks a random model, rightly and wrongly."""
    model = random_model(case)
    anatomy, batch = describe_model(model), random_batch(case, model)
    plan = random_plan(anatomy)
    with torch.no_grad():
        dense = outputs(model, batch)
        with UnitGates(model, anatomy.blocks, [mask.float() for mask in plan.masks(anatomy.blocks)]):
            masked = outputs(model, batch)

        def off(change: Callable[[PreTrainedModel], object]) -> float:
            changed = copy.deepcopy(model)
            change(changed)
            return largest_difference(masked, outputs(changed, batch))

        return CutCheck(
            case,
            shrunk=off(lambda copied: shrink_model(copied, anatomy, plan)),
            dense=largest_difference(masked, dense),
            wrong={
                "another head": off(lambda copied: shrink_model(copied, anatomy, exchange(plan, anatomy, 0))),
                "another filter": off(lambda copied: shrink_model(copied, anatomy, exchange(plan, anatomy, 1))),
                "rows of the values": off(lambda copied: _shrink_and_reverse(copied, anatomy, plan, 0)),
                "rows of the filters": off(lambda copied: _shrink_and_reverse(copied, anatomy, plan, 1)),
            },
        )


def random_plan(anatomy: ModelAnatomy, seed: int = 0) -> PruningPlan:
    """Random units of every block, none at all of some."""
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for index, block in enumerate(anatomy.blocks):
        kept = max(block.minimum, int(_SHARES[index % len(_SHARES)] * block.units))
        mask = torch.zeros(block.units, dtype=torch.bool)
        mask[torch.randperm(block.units, generator=generator)[:kept]] = True
        masks.append(mask)
    return PruningPlan.from_masks(anatomy.blocks, masks)


def exchange(plan: PruningPlan, anatomy: ModelAnatomy, index: int) -> PruningPlan:
    """The plan with one kept unit of a block exchanged for one that it removes."""
    block = anatomy.blocks[index]
    kept = plan.units(block)
    removed = next(unit for unit in range(block.units) if unit not in kept)
    return PruningPlan({**plan.kept, block.key: tuple(sorted((*kept[1:], removed)))})


def largest_difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """The largest absolute difference over all outputs."""
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(first, second, strict=True))


def _shrink_and_reverse(model: PreTrainedModel, anatomy: ModelAnatomy, plan: PruningPlan, index: int) -> None:
    """Shrinks rightly, then turns the rows of a block's last input projection upside down."""
    shrink_model(model, anatomy, plan)
    block = anatomy.blocks[index]
    projection = linear_at(model.get_submodule(block.layer), block.inputs[-1])
    projection.weight.copy_(projection.weight.flip(0))
