"""T5's position biases: computed in the first layer for all heads and handed on to the others.

Once layers have lost different heads, one bias cannot serve all. So as soon as a stack is cut, every layer gets a
table of its own, a copy of the first one's, which is then cut like any other part of the block, and takes no bias from
the layer before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

from torch import nn

from ..offloading import copy_module
from .blocks import Block
from .layouts import AttentionLayout
from .own_forward import own_forward, set_forward
from .undo import UndoLog

TABLE = "relative_attention_bias"
FLAG = "has_relative_attention_bias"


def give_own_tables(model: nn.Module, blocks: Sequence[Block], cut: Collection[str], log: UndoLog) -> None:
    """Makes the layers of a stack independent of each other's position bias, if any of its blocks is to be cut.

    Args:
        model: the model that the blocks are in, or a part of it that holds their stacks under the same paths.
        blocks: all its blocks.
        cut: keys of the blocks that are to be cut.
        log: remembers what was there.
    """
    for _, members in groupby(blocks, key=lambda block: block.stack):
        sharing = [block for block in members if isinstance(block.layout, AttentionLayout) and block.layout.shared_bias]
        if not any(block.key in cut for block in sharing):
            continue
        cores = [_core(model, block) for block in sharing]
        owner = next(core for core in cores if getattr(core, FLAG))
        for block, core in zip(sharing, cores, strict=True):
            if has_own_bias(core):
                continue
            if block.layout.cached and not getattr(core, FLAG):  # type: ignore[union-attr]
                log.set(core, TABLE, copy_module(getattr(owner, TABLE)))
                log.set(core, FLAG, True)
            set_forward(core, _forward_with_own_bias, log)


def has_own_bias(core: nn.Module) -> bool:
    """Whether an attention module takes no position bias from the layer before."""
    return own_forward(core) is _forward_with_own_bias


def _forward_with_own_bias(self: Any, *args: Any, **kwargs: Any) -> Any:
    kwargs["position_bias"] = None
    return type(self).forward(self, *args, **kwargs)


def _core(model: nn.Module, block: Block) -> Any:
    assert isinstance(block.layout, AttentionLayout)
    return model.get_submodule(block.layer).get_submodule(block.layout.core)
