"""What a cut attention module runs where the modelling code cannot follow a cut by itself.

Four things: a module with no head left is bypassed, arguments with an axis of heads are sliced before the module's own
`forward` sees them, sizes that it reads from the config while it runs are its own, and a `Conv1D` with nothing to read
gives its bias. All of them are attributes of the one module, so copying, saving and undoing a cut need no extra care.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .layouts import AttentionLayout
from .own_forward import set_forward
from .undo import UndoLog


class ConfigView:
    """A config as one module sees it: the model's own, except for some sizes."""

    def __init__(self, config: Any, sizes: Mapping[str, int]) -> None:
        self.__dict__["_config"] = config._config if isinstance(config, ConfigView) else config
        self.__dict__["_sizes"] = dict(sizes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_config", "_sizes"):  # copying asks before there is anything
            raise AttributeError(name)
        return self._sizes[name] if name in self._sizes else getattr(self._config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._config, name, value)


def bypass(core: nn.Module, layout: AttentionLayout, log: UndoLog) -> None:
    """Gives a module without heads a `forward` that returns as many values as its own would."""
    log.set(core, "output_inside", _inside(layout, layout.output))
    # Where the sum with the residual stream and the norm after it are in the core as well, they stay.
    log.set(core, "norm_inside", _inside(layout, layout.residual.module if layout.residual else ""))
    log.set(core, "values_returned", layout.returns)
    set_forward(core, _forward_without_heads, log)


def forward_on_kept_heads(core: nn.Module, layout: AttentionLayout, log: UndoLog) -> None:
    """Makes the module's own `forward` slice the arguments that `layout` names."""
    names = list(inspect.signature(type(core).forward).parameters)[1:]
    positions = [(name, names.index(name) if name in names else None, axis) for name, axis in layout.arguments.items()]
    log.set(core, "head_arguments", positions)
    set_forward(core, _forward_on_kept_heads, log)


def forward_without_columns(projection: nn.Module, log: UndoLog) -> None:
    """Makes a projection that reads nothing return its bias (a `Conv1D` without columns cannot tell rows apart)."""
    set_forward(projection, _forward_without_columns, log)


def _inside(layout: AttentionLayout, path: str) -> str | None:
    """A path in the layer as seen from the core, or None if it leads elsewhere."""
    inside = path.removeprefix(f"{layout.core}.")
    return inside if path and inside != path else None


def _forward_without_heads(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """An attention module that has no head left: what remains of the sublayer is the output projection's bias."""
    context = hidden_states.new_zeros(*hidden_states.shape[:-1], 0)
    if self.output_inside is not None:
        context = self.get_submodule(self.output_inside)(context)
    if self.norm_inside is not None:
        context = self.get_submodule(self.norm_inside)(hidden_states + context)
    if self.values_returned == 0:
        return context
    return context, *[None] * (self.values_returned - 2), _empty_probabilities(self, hidden_states)


def _forward_without_columns(self: Any, inputs: torch.Tensor) -> torch.Tensor:
    if self.bias is None:
        return inputs.new_zeros(*inputs.shape[:-1], self.weight.shape[0])
    return self.bias.to(inputs.dtype).expand(*inputs.shape[:-1], -1)


def _empty_probabilities(core: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor | None:
    """Attention probabilities of no heads, where the model's attention backend returns probabilities at all."""
    if getattr(getattr(core, "config", None), "_attn_implementation", None) != "eager":
        return None
    batch, length = hidden_states.shape[0], hidden_states.shape[-2]
    return hidden_states.new_zeros(batch, 0, length, length)


def _forward_on_kept_heads(self: Any, *args: Any, **kwargs: Any) -> Any:
    values = list(args)
    for name, position, axis in self.head_arguments:
        if name in kwargs:
            kwargs[name] = _kept_heads(self, kwargs[name], axis)
        elif position is not None and position < len(values):
            values[position] = _kept_heads(self, values[position], axis)
    return type(self).forward(self, *values, **kwargs)


def _kept_heads(core: Any, value: Any, axis: Any) -> Any:
    """`value` for the kept heads; untouched where it does not differ between heads."""
    if not isinstance(value, torch.Tensor):
        return value
    index = torch.tensor(core.kept_heads, device=value.device)
    if axis == "rows" and value.dim() == 4:  # batch and heads apart
        axis = 1
    if axis == "rows":
        rows = value.reshape(-1, core.heads_before_pruning, *value.shape[1:])
        return rows.index_select(1, index).flatten(0, 1)
    return value.index_select(axis, index) if value.shape[axis] == core.heads_before_pruning else value
