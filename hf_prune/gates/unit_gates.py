"""Gates on heads and filters: multipliers on the input of a block's output projection.

Scaling a head's slice of the context equals scaling its attention probabilities, for every attention backend, and
with dropout as well; scaling a filter is the FFN mask of Kwon et al. 2022 (section 3.1). A gate is a forward
pre-hook, so nothing in the modelling code or in the state dict changes, and removing it leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..anatomy import Block, describe_model, groups_of, linear_at
from ..errors import PruningError
from ..offloading import device_of
from .expert_gates import ExpertGates

GateValue = torch.Tensor | Callable[[], torch.Tensor]


class UnitGate:
    """The multiplier on one block, called as a forward pre-hook of its output projection.

    Args:
        value: `[units]`, or `[examples, units]` for a gate per example; or a function that gives it for every pass.
        block: the block.
    """

    def __init__(self, value: GateValue, block: Block) -> None:
        self._value = value
        self.block = block

    @property
    def value(self) -> torch.Tensor:
        """What the gate multiplies with."""
        return self._value if isinstance(self._value, torch.Tensor) else self._value()

    @value.setter
    def value(self, value: GateValue) -> None:
        self._value = value

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (gate_columns(args[0], self.block.spread(self.value)), *args[1:])


def gate_columns(inputs: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Multiplies the columns of a projection's input.

    Args:
        inputs: `[rows, ..., columns]`.
        columns: `[columns]`, or `[examples, columns]`; then `rows` must be a multiple of `examples`, with the rows of
            one example next to each other (multiple choice and models that flatten batch and length do that).
    """
    columns = columns.to(inputs)
    if columns.dim() == 2:
        columns = columns.repeat_interleave(inputs.shape[0] // columns.shape[0], dim=0)
        columns = columns.reshape(columns.shape[0], *(1,) * (inputs.dim() - 2), columns.shape[1])
    return inputs * columns


class UnitGates:
    """Gates on several blocks of a model, until `remove()` is called.

    Attributes:
        blocks: the gated blocks; of a group of experts all of them.
        gates: one `UnitGate` per block; assign to a gate's `value` to change it.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block], values: Iterable[GateValue]) -> None:
        self._slot: tuple[nn.Module, str] | None = None
        self.blocks = tuple(blocks)
        self.gates = [UnitGate(value, block) for block, value in zip(self.blocks, values, strict=True)]
        self._handles = [_place(model, gates) for gates in _placed_together(self.gates)]

    @property
    def values(self) -> list[torch.Tensor]:
        """The gates' values, one tensor per block."""
        return [gate.value for gate in self.gates]

    def remove(self) -> None:
        """Takes the gates off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._slot is not None:
            model, name = self._slot
            model.__dict__.pop(name, None)
            self._slot = None

    def register(self, model: nn.Module, name: str) -> None:
        """Keeps the gates as an attribute of the model until they are removed."""
        model.__dict__[name] = self
        self._slot = (model, name)

    def __enter__(self) -> UnitGates:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()


def _placed_together(gates: Sequence[UnitGate]) -> list[list[UnitGate]]:
    """The gates by the module that they act in: one each, but those of a group of experts together."""
    groups = {members[0].group: members for members in groups_of(gate.block for gate in gates)}
    single = [[gate] for gate in gates if gate.block.group is None]
    return single + [[gate for gate in gates if gate.block.group == group] for group in groups]


def _place(model: nn.Module, gates: list[UnitGate]) -> ExpertGates | RemovableHandle:
    block = gates[0].block
    layer = model.get_submodule(block.layer)
    if block.output.expert is not None:
        return ExpertGates(layer, gates)
    return linear_at(layer, block.output).register_forward_pre_hook(gates[0])


def add_head_gates(model: PreTrainedModel, values: Sequence[torch.Tensor] | None = None) -> UnitGates:
    """Puts a gate on every head (KV group) of a model.

    Args:
        model: a supported model.
        values: one 1-D tensor per attention block (a mask or any multipliers), ones by default.

    Returns:
        The gates; a context manager that removes them at its end.

    Raises:
        PruningError: the values do not fit the blocks, or the model already has head gates.
    """
    return _add(model, "_head_gates", describe_model(model).attentions, values)


def add_filter_gates(model: PreTrainedModel, values: Sequence[torch.Tensor] | None = None) -> UnitGates:
    """Puts a gate on every filter of a model; see `add_head_gates`."""
    return _add(model, "_filter_gates", describe_model(model).feed_forwards, values)


def remove_head_gates(model: PreTrainedModel) -> None:
    """Takes the head gates off, if there are any."""
    _remove(model, "_head_gates")


def remove_filter_gates(model: PreTrainedModel) -> None:
    """Takes the filter gates off, if there are any."""
    _remove(model, "_filter_gates")


def has_gates(model: PreTrainedModel) -> bool:
    """Whether `add_head_gates` or `add_filter_gates` put gates on a model that are still there."""
    return "_head_gates" in model.__dict__ or "_filter_gates" in model.__dict__


def _add(
    model: PreTrainedModel, slot: str, blocks: Sequence[Block], values: Sequence[torch.Tensor] | None
) -> UnitGates:
    if slot in model.__dict__:
        raise PruningError(f"{type(model).__name__} already has {slot[1:].replace('_', ' ')}. Remove them first.")
    if values is None:
        values = [torch.ones(block.units, device=_device(model, block)) for block in blocks]
    _check_values(blocks, values)
    placed = [value.to(_device(model, block)) for block, value in zip(blocks, values, strict=True)]
    gates = UnitGates(model, blocks, placed)
    gates.register(model, slot)
    return gates


def _remove(model: PreTrainedModel, slot: str) -> None:
    gates = model.__dict__.get(slot)
    if gates is not None:
        gates.remove()


def _device(model: nn.Module, block: Block) -> torch.device:
    return device_of(model.get_submodule(block.layer))


def _check_values(blocks: Sequence[Block], values: Sequence[torch.Tensor]) -> None:
    if len(values) != len(blocks):
        raise PruningError(f"Got gates for {len(values)} blocks, but the model has {len(blocks)}.")
    for block, value in zip(blocks, values, strict=True):
        if value.shape[-1:] != (block.units,) or value.dim() > 2:
            raise PruningError(
                f"{block.key}: gates of shape {tuple(value.shape)} do not fit {block.units} units;"
                f" expected [{block.units}] or [examples, {block.units}]."
            )
