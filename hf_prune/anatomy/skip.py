"""Running a model without sublayers of which every unit is off, while their parameters keep their shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .blocks import Block
from .cut_forward import bypass, forward_without_columns
from .layouts import AttentionLayout
from .own_forward import set_forward
from .projections import linear_at
from .undo import UndoLog


def can_skip(block: Block) -> bool:
    """Whether a sublayer's projections are modules of their own; those of experts are not."""
    return all(projection.expert is None for projection in block.projections)


def skip_sublayer(layer: nn.Module, block: Block, log: UndoLog) -> None:
    """Makes a sublayer give its output projection's bias without computing anything else, until the log rolls back.

    That is what it gives once its columns of the output projection are zero, and what it gives once it has been cut.
    """
    if isinstance(block.layout, AttentionLayout):
        bypass(layer.get_submodule(block.layout.core), block.layout, log)
    else:
        for projection in block.inputs:
            module = linear_at(layer, projection)
            set_forward(module, _forward_without_rows, log)
    forward_without_columns(linear_at(layer, block.output), log)


def _forward_without_rows(self: Any, inputs: torch.Tensor) -> torch.Tensor:
    return inputs.new_zeros(*inputs.shape[:-1], 0)
