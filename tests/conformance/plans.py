"""Plans that leave no kind of cut out, and masked models that owe nothing to gates or surgery."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from hf_prune.anatomy import Block, ModelAnatomy, describe_model, weight_of
from hf_prune.gates import UnitGates
from hf_prune.surgery import PruningPlan, apply_plan, outputs, write_metadata
from tests.small_models import Batch

TOLERANCE = 1e-4
# A mask has to change the outputs by this much, or agreement within the tolerance means nothing.
VISIBLE = 1000 * TOLERANCE


def varied_plan(anatomy: ModelAnatomy, seed: int = 0) -> PruningPlan:
    """Of the attention blocks and of the FFN blocks: one empty, one whole, the others random.

    Where the first layer needs a head (decoders), another layer is emptied.
    """
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, tuple[int, ...]] = {}
    for blocks, empty, whole in ((anatomy.attentions, 1, 2), (anatomy.feed_forwards, 2, 1)):
        names = list(dict.fromkeys(block.group or block.key for block in blocks))
        for block in blocks:
            index = names.index(block.group or block.key)  # a layer's experts must keep equal counts
            if index % 3 == empty:
                kept[block.key] = tuple(range(block.minimum))
            elif index % 3 == whole:
                kept[block.key] = tuple(range(block.units))
            else:
                kept[block.key] = _random_units(block, generator)
    return PruningPlan(kept)


def _random_units(block: Block, generator: torch.Generator) -> tuple[int, ...]:
    """Half of a block's units or one more, the first one not among them; a block of fewer than two stays as it is."""
    if block.units < 2:
        return tuple(range(block.units))
    order = (1 + torch.randperm(block.units - 1, generator=generator)).tolist()
    return tuple(sorted(order[: (block.units + 1) // 2]))


def zeroed_copy(model: PreTrainedModel, anatomy: ModelAnatomy, plan: PruningPlan) -> PreTrainedModel:
    """The dense model with the output projections' columns of removed units set to zero."""
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for block in anatomy.blocks:
            weight = weight_of(masked.get_submodule(block.layer), block.output)
            for unit in set(range(block.units)) - set(plan.units(block)):
                for part in block.output.parts:
                    weight[:, part.start + unit * part.width : part.start + (unit + 1) * part.width] = 0
    return masked


def run(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """The model's outputs, without gradients."""
    with torch.no_grad():
        return outputs(model, batch)


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest absolute difference between two models' outputs."""
    assert len(one) == len(other) > 0
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def prune(model: PreTrainedModel, batch: Batch, seed: int = 0) -> PruningPlan:
    """Shrinks a model to a varied plan, checked on a batch, and writes its metadata."""
    anatomy = describe_model(model)
    plan = varied_plan(anatomy, seed)
    apply_plan(model, anatomy, plan, batch=batch)
    write_metadata(model, anatomy, plan, {"strategy": "by hand"}, {}, {})
    return plan


def assert_gates_mask(
    model: PreTrainedModel, anatomy: ModelAnatomy, plan: PruningPlan, batch: Batch
) -> list[torch.Tensor]:
    """Gates give what zeroed columns give, which differs visibly from the dense model; returns the masked outputs."""
    dense, masked = run(model, batch), run(zeroed_copy(model, anatomy, plan), batch)
    assert difference(dense, masked) >= VISIBLE
    with UnitGates(model, anatomy.blocks, [mask.float() for mask in plan.masks(anatomy.blocks)]):
        assert difference(run(model, batch), masked) <= TOLERANCE
    return masked


def assert_counted_in_dense_model(
    loaded: PreTrainedModel, anatomy: ModelAnatomy, heads: dict[str, int], first: PruningPlan, again: PruningPlan
) -> None:
    """A model that was pruned twice lists its heads as the dense one counted them; `anatomy` is between the cuts."""
    for block in anatomy.attentions:
        entry = loaded.get_submodule(block.owner).config.pruning["blocks"][block.local_key]
        kept = first.units(block)
        assert entry["of"] == heads[block.key]
        assert entry["heads"] == [kept[unit] for unit in again.units(block)]
