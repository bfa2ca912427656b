"""One layer on trial: a copy whose weights matter, run as the model runs it, masked and cut."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .blocks import Block, weight_of
from .cut_together import cut_layer
from .undo import UndoLog

Call = tuple[tuple[Any, ...], dict[str, Any]]


class LayerTrial:
    """Compares masking and cutting units of one block, or of all experts, on a copy of its layer.

    The copy computes in float32. Its weight matrices are rescaled so that attention is far from uniform, its vectors
    (biases, norms, layer scales) and the hidden states are drawn at random.

    Args:
        layer: the model's own layer, which is not changed.
        members: one of its blocks, or those of a group, which can only be cut together.
        call: the arguments that the model calls it with.
    """

    AGREEMENT = 1e-3  # largest accepted difference, relative to what the mask changes
    VISIBLE = 1e-3  # what a mask has to change, relative to the layer's largest output

    def __init__(self, layer: nn.Module, members: Sequence[Block], call: Call) -> None:
        self._layer = copy.deepcopy(layer).float()
        self._members = members
        self.key = members[0].group or members[0].key
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self._layer.named_parameters():
            parameter.copy_(_telling(name, parameter, generator))
        args, kwargs = _in_float32(call)
        self._args, self._kwargs = _with_random_states(args, kwargs, generator)
        self._dense = self._run()

    def compare(self, kept: Sequence[Sequence[int]]) -> tuple[float, float, float]:
        """Keeps some units only.

        Args:
            kept: the units that stay of each member.

        Returns:
            The largest change by the mask, the largest difference between mask and cut, and the largest output.
        """

        def mask(log: UndoLog) -> None:
            for block, units in zip(self._members, kept, strict=True):
                mask_block(self._layer, block, units, log)

        def cut(log: UndoLog) -> None:
            keys = [block.key for block in self._members]
            cut_layer(self._layer, self._members, dict(zip(keys, kept, strict=True)), log)

        masked, shrunk = self._changed(mask), self._changed(cut)
        return differ(self._dense, masked), differ(masked, shrunk), float(masked[0].abs().max())

    def _changed(self, change: Callable[[UndoLog], None]) -> list[torch.Tensor]:
        log = UndoLog()
        try:
            change(log)
            return self._run()
        finally:
            log.roll_back()

    def _run(self) -> list[torch.Tensor]:
        """The new hidden states; what else a layer returns (attention probabilities) has an axis of heads."""
        torch.manual_seed(0)
        args, kwargs = copy.deepcopy((self._args, self._kwargs))
        return [next(tensors(self._layer(*args, **kwargs)))]


def recorded_calls(
    model: PreTrainedModel, layers: Sequence[str], batch: Mapping[str, Any]
) -> tuple[dict[str, Call], list[torch.Tensor]]:
    """Runs a model and notes how it calls its layers.

    Returns:
        The arguments of each layer's first call, by path, for those layers that are called; and the model's outputs.
    """
    calls: dict[str, Call] = {}

    def hook(path: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path not in calls:  # copied, because caches fill up as the model runs on
                calls[path] = copy.deepcopy((args, kwargs))

        return note

    handles = [model.get_submodule(path).register_forward_pre_hook(hook(path), with_kwargs=True) for path in layers]
    try:
        outputs = run_plainly(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls, outputs


def run_plainly(model: PreTrainedModel, batch: Mapping[str, Any]) -> list[torch.Tensor]:
    """The model's outputs, without what has an axis of heads or depends on a cache."""
    accepted = inspect.signature(model.forward).parameters
    plain = {"use_cache": False, "output_attentions": False, "output_hidden_states": False, "return_dict": True}
    flexible = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    given = {name: value for name, value in plain.items() if flexible or name in accepted}
    torch.manual_seed(0)  # masks drawn at random in the forward pass must be the same ones each time
    return list(tensors(model(**{**batch, **given})))


def mask_block(layer: nn.Module, block: Block, units: Sequence[int], log: UndoLog) -> None:
    """Zeroes the columns of the output projection that belong to other units than `units`."""
    if block.output.expert is None:
        module, name = layer.get_submodule(block.output.path), "weight"
    else:
        parent, _, name = block.output.path.rpartition(".")
        module = layer.get_submodule(parent)
    log.set(module, name, nn.Parameter(module.get_parameter(name).detach().clone(), requires_grad=False))
    removed = [unit for unit in range(block.units) if unit not in units]
    columns = [column for column, unit in enumerate(block.columns.tolist()) if unit in removed]
    with torch.no_grad():
        weight_of(layer, block.output)[:, columns] = 0  # a view of the new parameter


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every floating-point tensor in a model's or a layer's output, in double precision."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value.double()
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "to_tuple"):
        yield from tensors(value.to_tuple())


def differ(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Largest difference between corresponding outputs; infinite where they do not correspond or are not numbers."""
    if len(one) != len(other) or any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return float("inf")
    pairs = [(a - b).abs().nan_to_num(nan=torch.inf) for a, b in zip(one, other, strict=True) if a.numel()]
    return max((float(pair.max()) for pair in pairs), default=0.0)


def _telling(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values with which a parameter shows in the output, whatever it was initialised to."""
    if parameter.dim() < 2:
        noise = 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)
        return noise if name.endswith("bias") else 1 + noise
    spread = parameter.std() if parameter.numel() > 1 else torch.zeros(())
    if not spread > 0 or not spread.isfinite():
        parameter = torch.randn(parameter.shape, generator=generator).to(parameter)
        spread = torch.ones(())
    return parameter * (2 / (float(spread) * parameter.shape[-1] ** 0.5))


def _in_float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_in_float32(item) for item in value)
    if type(value) is dict:
        return {name: _in_float32(item) for name, item in value.items()}
    return value


def _with_random_states(args: tuple[Any, ...], kwargs: dict[str, Any], generator: torch.Generator) -> Call:
    """The same arguments with other hidden states: after a few layers of a new model those of all tokens are alike."""

    def drawn(states: Any) -> Any:
        if not isinstance(states, torch.Tensor) or not states.is_floating_point():
            return states
        return torch.randn(states.shape, generator=generator).to(states)

    if args:
        return (drawn(args[0]), *args[1:]), kwargs
    return args, {name: drawn(value) if name == "hidden_states" else value for name, value in kwargs.items()}
