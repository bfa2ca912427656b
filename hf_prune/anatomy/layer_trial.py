"""One layer on trial: a copy whose weights matter, run as the model runs it, masked and cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..offloading import copy_in_memory
from .blocks import Block
from .cut_together import cut_layer
from .layer_calls import Forward, floating_tensors, replaced_forwards, run_plainly
from .parameters import change_parameter
from .projections import Projection, oriented
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
        self._layer = copy_in_memory(layer).float()
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

        units = {block.key: stay for block, stay in zip(self._members, kept, strict=True)}

        def mask(log: UndoLog) -> None:
            mask_layer(self._layer, self._members, units, log)

        def cut(log: UndoLog) -> None:
            cut_layer(self._layer, self._members, units, log)

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
        return _doubled(self._layer(*args, **kwargs))[:1]


def recorded_calls(
    model: PreTrainedModel, layers: Sequence[str], batch: Mapping[str, Any]
) -> tuple[dict[str, Call], list[torch.Tensor]]:
    """Runs a model and notes how it calls its layers.

    Returns:
        The arguments of each layer's first call, by path, for those layers that are called; and the model's outputs.
    """
    calls: dict[str, Call] = {}

    def wrap(path: str, own: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if path not in calls:  # copied, because caches fill up as the model runs on
                calls[path] = copy.deepcopy((args, kwargs))
            return own(*args, **kwargs)

        return forward

    with replaced_forwards(model, layers, wrap):
        return calls, outputs_of(model, batch)


def mask_layer(layer: nn.Module, blocks: Sequence[Block], kept: Mapping[str, Sequence[int]], log: UndoLog) -> None:
    """Zeroes the columns of the blocks' output projections that belong to other units than those kept, by key."""
    silenced: dict[str, list[tuple[Projection, torch.Tensor]]] = {}
    for block in blocks:  # experts share one parameter
        columns = np.flatnonzero(np.isin(block.columns, kept[block.key], invert=True))
        silenced.setdefault(block.output.path, []).append((block.output, torch.from_numpy(columns)))
    for path, columns_of in silenced.items():
        parameter = path if columns_of[0][0].expert is not None else f"{path}.weight"
        parent, _, name = parameter.rpartition(".")
        change_parameter(layer.get_submodule(parent), name, partial(_without_columns, columns_of), log)


def _without_columns(columns_of: Sequence[tuple[Projection, torch.Tensor]], old: torch.Tensor) -> torch.Tensor:
    """A copy of a parameter in which some columns of the projections that it holds are zero."""
    changed = old.clone()
    for projection, columns in columns_of:
        oriented(changed, projection)[:, columns.to(old.device)] = 0
    return changed


def outputs_of(model: PreTrainedModel, batch: Mapping[str, Any]) -> list[torch.Tensor]:
    """The model's outputs in double precision."""
    return _doubled(run_plainly(model, batch))


def _doubled(output: Any) -> list[torch.Tensor]:
    return [value.double() for value in floating_tensors(output)]


def differ(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Largest difference between corresponding outputs; infinite where they do not correspond or are not numbers."""
    if len(one) != len(other) or any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return float("inf")
    pairs = [(a - b).abs().nan_to_num(nan=torch.inf) for a, b in zip(one, other, strict=True) if a.numel()]
    return max((float(pair.max()) for pair in pairs), default=0.0)


def _telling(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values with which a parameter shows in the output, whatever it was initialised to."""
    if not parameter.numel():  # of a block that an earlier cut has left without units
        return parameter
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
