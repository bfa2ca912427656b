"""Gates on the filters of experts and on whole experts.

A mixture of experts computes inside one module, with parameters that hold all experts, so there is no projection whose
input could be multiplied. While it is gated the module computes expert by expert, through the parts that transformers
gives every such module for its own `experts_implementation`s, and multiplies in between.

What a gate is depends on the unit. A filter's multiplies the filter. A whole expert's multiplies what the expert puts
out; an expert whose gate is zero for all examples is closed: the router never chooses it, and its tokens go to others.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..anatomy import Block, ExpertsLayout
from ..errors import PruningError
from ..offloading import forward_name

_SLOT = "expert_gates"


class Gate(Protocol):
    """The multipliers on one block; see `UnitGate`."""

    value: torch.Tensor
    block: Block


class ExpertGates:
    """The gates of one mixture of experts, until `remove()` is called.

    Args:
        layer: the layer that the mixture is in.
        gates: gates on the filters of some or all of its experts, or a single one on whole experts.
    """

    def __init__(self, layer: nn.Module, gates: Sequence[Gate]) -> None:
        layout = gates[0].block.layout
        assert isinstance(layout, ExpertsLayout)
        self._gates = gates
        self._experts: Any = layer.get_submodule(layout.name)
        self._router: Any = layer.get_submodule(layout.router)
        self.whole = gates[0].block.unit == "experts"
        self._of_expert = {} if self.whole else {gate.block.output.expert: gate for gate in gates}
        for module, forward in ((self._experts, _gated_experts), (self._router, _gated_router)):
            module.__dict__.setdefault(_SLOT, []).append(self)
            module.__dict__[forward_name(module)] = MethodType(forward, module)

    def remove(self) -> None:
        """Takes the gates off again."""
        for module in (self._experts, self._router):
            gated = module.__dict__.get(_SLOT, [])
            if self in gated:
                gated.remove(self)
            if not gated and _SLOT in module.__dict__:
                del module.__dict__[_SLOT]
                _give_back_forward(module)

    def filters(self, values: torch.Tensor, expert: int, tokens: torch.Tensor, length: int) -> torch.Tensor:
        """Filters `[tokens, filters]` of one expert, gated; `tokens` are their indices among `length`."""
        gate = self._of_expert.get(expert)
        return values if gate is None else values * _of_tokens(gate.value.to(values), tokens, length)

    def outputs(self, values: torch.Tensor, expert: int, tokens: torch.Tensor, length: int) -> torch.Tensor:
        """What one expert puts out for some tokens, `[tokens, hidden]`, gated."""
        if not self.whole:
            return values
        return values * _of_tokens(self._gates[0].value[..., expert, None].to(values), tokens, length)

    @property
    def closed(self) -> torch.Tensor | None:
        """Which experts are closed, bool `[experts]`, or None for gates on filters or per example."""
        value = self._gates[0].value
        return value.detach() == 0 if self.whole and value.dim() == 1 else None


def _give_back_forward(module: nn.Module) -> None:
    """A module computes again what its class says."""
    name = forward_name(module)
    if name == "forward":
        del module.__dict__[name]
    else:  # what a hook is wrapped around
        module.__dict__[name] = MethodType(type(module).forward, module)


def _gated_experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What a mixture of experts computes, one expert after the other, with its gates."""
    gated: list[ExpertGates] = getattr(self, _SLOT)
    total = torch.zeros_like(hidden_states)
    for expert in range(self.num_experts):
        tokens, places = torch.where(top_k_index == expert)
        inner = _filters(self, expert, hidden_states[tokens])
        for gates in gated:
            inner = gates.filters(inner, expert, tokens, len(hidden_states))
        output = _linear(self, "down_proj", expert, inner)
        if getattr(self, "has_post_expert_norm", False):
            output = self.post_expert_norm(output)
        for gates in gated:
            output = gates.outputs(output, expert, tokens, len(hidden_states))
        output = output * top_k_weights[tokens, places, None]
        total = total.index_add(0, tokens, output.to(total.dtype))
    return total


def _filters(experts: Any, expert: int, hidden_states: torch.Tensor) -> torch.Tensor:
    if experts.has_gate:
        return experts._apply_gate(_linear(experts, "gate_up_proj", expert, hidden_states))
    return experts.act_fn(_linear(experts, "up_proj", expert, hidden_states))


def _linear(experts: Any, name: str, expert: int, inputs: torch.Tensor) -> torch.Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return F.linear(inputs, weight.T if experts.is_transposed else weight, bias)


def _of_tokens(values: torch.Tensor, tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Gates `[units]`, or of each token's example in `[examples, units]`: an example's tokens are neighbours."""
    return values if values.dim() == 1 else values[tokens // (length // len(values))]


def _gated_router(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The router's own forward, without the closed experts."""
    closed = [gates.closed for gates in getattr(self, _SLOT)]
    shut = [one for one in closed if one is not None and one.any()]
    if not shut:
        return type(self).forward(self, *args, **kwargs)
    with _ClosedExperts(self, torch.stack(shut).any(0)) as mode:
        chosen = type(self).forward(self, *args, **kwargs)
    if not mode.met:
        raise PruningError(
            f"{type(self).__name__} does not multiply its weight with the hidden states as other routers do, so"
            " experts cannot be closed in it. Prune the experts' filters instead."
        )
    return chosen


class _ClosedExperts(TorchFunctionMode):
    """The logits of closed experts are minus infinity, wherever in its forward the router computes them."""

    def __init__(self, router: Any, closed: torch.Tensor) -> None:
        super().__init__()
        self.met = False
        self._router = router
        self._closed = closed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear and len(args) > 1 and args[1] is self._router.weight:
            self.met = True
            return result.masked_fill(self._closed.to(result.device), -torch.inf)
        return result
