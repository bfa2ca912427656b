"""What removing units from a block means: its projections get smaller, and what the modelling code reads follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .blocks import Block
from .cut_forward import ConfigView, bypass, forward_on_kept_heads, forward_without_columns
from .layouts import AttentionLayout
from .parameters import keep_slices
from .position_tables import has_own_bias
from .projections import Part, Projection, kept_indices, linear_at, owners, weight_of
from .undo import UndoLog


def cut_block(
    layer: nn.Module, block: Block, units: Sequence[int], log: UndoLog, original: Sequence[int] | None = None
) -> None:
    """Cuts one block of `layer` (the model's own, or a copy of it) down to `units`.

    New, smaller parameters replace the old ones; modules stay the same objects, so names in the state dict do not
    change.

    Args:
        layer: where the block is.
        block: the block as it is now.
        units: what stays, in ascending order.
        log: remembers what was there.
        original: the same units as they are counted in the dense model, where that differs (when a pruned model is
            built anew, the weights that are cut away mean nothing, but position biases are given for every head).
    """
    if len(units) == block.units:
        return
    for projection in block.projections:
        _keep_units(layer, projection, block.units, units, log)
    for path, axis in block.tables.items():
        _keep_slices(layer, path, axis, block.units, units, log)
    for path in block.lists:
        _keep_members(layer, path, block.units, units, log)
    core = layer.get_submodule(block.layout.core if isinstance(block.layout, AttentionLayout) else _parent(block))
    for name, per_unit in block.counts.items():
        # Modelling code divides by sizes (when it draws weights, for instance); those of an empty block stay.
        if units:
            log.set(core, name, per_unit * len(units))
    if isinstance(block.layout, AttentionLayout):
        _follow_in_core(core, block, block.layout, units, original or units, log)


def _parent(block: Block) -> str:
    return block.output.path.rpartition(".")[0]


def _keep_units(layer: nn.Module, projection: Projection, before: int, units: Sequence[int], log: UndoLog) -> None:
    module = linear_at(layer, projection)
    size = weight_of(layer, projection).shape[projection.axis]
    kept = kept_indices(projection.owners(before, size), units)
    axis = 1 - projection.axis if projection.transposed else projection.axis
    keep_slices(module, "weight", axis, kept, log)
    size_in, size_out = ("nx", "nf") if projection.transposed else ("in_features", "out_features")
    log.set(module, size_in if projection.axis == 1 else size_out, len(kept))
    if projection.transposed and not len(kept) and projection.axis == 1:
        forward_without_columns(module, log)
    if projection.axis == 0 and module.bias is not None:
        keep_slices(module, "bias", 0, kept, log)


def _keep_slices(layer: nn.Module, path: str, axis: int, before: int, units: Sequence[int], log: UndoLog) -> None:
    """A parameter with an axis of heads; one that this layer lacks (a table that another layer has) is none."""
    parent, _, name = path.rpartition(".")
    try:
        module = layer.get_submodule(parent)
    except AttributeError:
        return
    parameter = module._parameters.get(name)
    if parameter is None:
        return
    size = parameter.shape[axis]
    kept = kept_indices(owners([Part(0, size // before)], before, size), units)
    keep_slices(module, name, axis, kept, log)
    if isinstance(module, nn.Embedding):
        log.set(module, "embedding_dim", module.weight.shape[1])


def _keep_members(layer: nn.Module, path: str, before: int, units: Sequence[int], log: UndoLog) -> None:
    """A list of modules, one for each head."""
    parent, _, name = path.rpartition(".")
    members = list(layer.get_submodule(path).children())
    index = kept_indices(owners([Part(0, len(members) // before)], before, len(members)), units)
    log.set(layer.get_submodule(parent), name, nn.ModuleList(members[place] for place in index))


def _follow_in_core(
    core: Any, block: Block, layout: AttentionLayout, units: Sequence[int], original: Sequence[int], log: UndoLog
) -> None:
    if block.config_counts:
        sizes = {name: per_unit * len(units) for name, per_unit in block.config_counts.items()}
        log.set(core, "config", ConfigView(core.config, sizes))
    if not units:
        bypass(core, layout, log)
    elif layout.arguments and not has_own_bias(core):
        dense = getattr(core, "heads_before_pruning", block.units * block.heads_per_unit)
        before = getattr(core, "kept_heads", None) or list(range(dense))
        width = block.heads_per_unit
        kept = [unit * width + head for unit in original for head in range(width)]
        log.set(core, "heads_before_pruning", dense)
        log.set(core, "kept_heads", [before[head] for head in kept])
        forward_on_kept_heads(core, layout, log)
