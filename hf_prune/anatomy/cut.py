"""What removing units from a block means: its projections get smaller, and a block with nothing left is bypassed."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn

from .blocks import Block, Projection, linear_at
from .layouts import AttentionLayout

_ABSENT = object()


class UndoLog:
    """What surgery replaced, so that it can be put back; holds references, not copies."""

    def __init__(self) -> None:
        self._entries: list[tuple[nn.Module, str, Any]] = []
        self._changed = True

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Sets an attribute of the module itself and remembers what was there."""
        self._entries.append((module, name, _own(module, name)))
        setattr(module, name, value)

    def swap(self) -> None:
        """Exchanges what is there for what was there; a second call exchanges them again."""
        swapped = []
        for module, name, value in reversed(self._entries):
            swapped.append((module, name, _own(module, name)))
            if value is _ABSENT:
                delattr(module, name)
            else:
                setattr(module, name, value)
        self._entries = swapped
        self._changed = not self._changed

    def roll_back(self) -> None:
        """Restores what was there before the first change, wherever earlier swaps left the model."""
        if self._changed:
            self.swap()


def _own(module: nn.Module, name: str) -> Any:
    """The module's own attribute or parameter, not one of its class."""
    return {**module.__dict__, **module._parameters}.get(name, _ABSENT)


def cut_block(layer: nn.Module, block: Block, units: Sequence[int], log: UndoLog) -> None:
    """Cuts one block of `layer` (the model's own, or a copy of it) down to `units`.

    New, smaller parameters replace the old ones; modules stay the same objects, so names in the state dict do not
    change.
    """
    if len(units) == block.units:
        return
    for projection in block.projections:
        _keep_units(linear_at(layer, projection), projection, units, log)
    if isinstance(block.layout, AttentionLayout):
        _keep_counts(layer, block.layout, len(units), block.head_dim * block.heads_per_unit, log)


def _keep_units(linear: nn.Linear, projection: Projection, units: Sequence[int], log: UndoLog) -> None:
    index = slice_index(units, projection.width).to(linear.weight.device)
    weight = linear.weight.detach().index_select(projection.axis, index)
    log.set(linear, "weight", nn.Parameter(weight, requires_grad=linear.weight.requires_grad))
    if projection.axis == 1:
        log.set(linear, "in_features", len(index))
        return
    log.set(linear, "out_features", len(index))
    if linear.bias is not None:
        bias = linear.bias.detach().index_select(0, index)
        log.set(linear, "bias", nn.Parameter(bias, requires_grad=linear.bias.requires_grad))


def slice_index(units: Sequence[int], width: int) -> torch.Tensor:
    """Row or column indices of `units` that are `width` wide each."""
    starts = torch.tensor(list(units), dtype=torch.long) * width
    return (starts[:, None] + torch.arange(width)).flatten()


def _keep_counts(layer: nn.Module, layout: AttentionLayout, heads: int, head_dim: int, log: UndoLog) -> None:
    core = layer.get_submodule(layout.core)
    for name, meaning in layout.counts.items():
        log.set(core, name, heads if meaning == "heads" else heads * head_dim)
    if heads == 0:
        inside = layout.output.removeprefix(f"{layout.core}.")
        log.set(core, "output_inside", inside if inside != layout.output else None)
        log.set(core, "forward", MethodType(_forward_without_heads, core))


def _forward_without_heads(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """An attention module that has no head left: what remains of the sublayer is the output projection's bias."""
    context = hidden_states.new_zeros(*hidden_states.shape[:-1], 0)
    if self.output_inside is not None:
        context = self.get_submodule(self.output_inside)(context)
    return context, _empty_probabilities(self, hidden_states)


def _empty_probabilities(core: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """Attention probabilities of no heads, where the model's attention backend returns probabilities at all."""
    if getattr(core.config, "_attn_implementation", None) != "eager":
        return None
    batch, length = hidden_states.shape[0], hidden_states.shape[-2]
    return hidden_states.new_zeros(batch, 0, length, length)
