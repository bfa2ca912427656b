"""Cuts several blocks at once: those that share their weights have to be cut together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from .blocks import Block
from .cut import cut_block
from .cut_experts import keep_experts, keep_filters
from .undo import UndoLog

Units = Mapping[str, Sequence[int]]


def cut_model(
    model: nn.Module, blocks: Sequence[Block], units: Units, log: UndoLog, original: Units | None = None
) -> None:
    """Cuts blocks of a model; see `cut_layer`."""
    for path in dict.fromkeys(block.layer for block in blocks):
        cut_layer(model.get_submodule(path), [block for block in blocks if block.layer == path], units, log, original)


def cut_layer(
    layer: nn.Module, blocks: Sequence[Block], units: Units, log: UndoLog, original: Units | None = None
) -> None:
    """Cuts blocks of one layer (the model's own, or a copy of it).

    Args:
        layer: where the blocks are.
        blocks: the blocks as they are now; of a group all or none.
        units: what stays of each, by key, in ascending order.
        log: remembers what was there.
        original: the same units as they are counted in the dense model, where that differs; see `cut_block`.

    Raises:
        PruningError: blocks of a group would keep different counts.
    """
    for block in blocks:
        if block.group is None and block.unit != "experts":
            cut_block(layer, block, units[block.key], log, (original or {}).get(block.key))
    for members in groups_of(blocks):
        keep_filters(layer, members, units, log)
    for block in blocks:
        if block.unit == "experts":
            keep_experts(layer, block, units[block.key], log)


def groups_of(blocks: Iterable[Block]) -> list[list[Block]]:
    """The blocks that must keep equal counts, group by group, each in the order of its experts."""
    groups: dict[str, list[Block]] = {}
    for block in blocks:
        if block.group is not None:
            groups.setdefault(block.group, []).append(block)
    return [sorted(members, key=lambda block: int(block.output.expert or 0)) for members in groups.values()]
