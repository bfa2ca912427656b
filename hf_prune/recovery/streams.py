"""Two residual streams through a model, layer by layer: the dense one and that of the model being cut.

Layers are called with the arguments that the model itself passes them, recorded while the layers are skipped, so no
modelling code is repeated here. Nothing in the model changes: the cut happens on a copy of one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import Block, Tap, linear_at
from ..anatomy.layer_calls import LayerCall, StopForward, positions_read, record_layer_calls
from ..calibration import Batch, valid_tokens, without_labels


@dataclass
class Stream:
    """One calibration batch on its way through the layers.

    Attributes:
        dense: hidden states of the original model, `[rows, length, hidden]`.
        pruned: hidden states of the model as cut so far.
        calls: how each layer is called.
        valid: positions that are not padding, bool `[rows, length]`.
        read: those of them whose last hidden state the model's output depends on.
    """

    dense: torch.Tensor
    pruned: torch.Tensor
    calls: list[LayerCall]
    valid: torch.Tensor
    read: torch.Tensor

    @property
    def counted(self) -> torch.Tensor:
        """The positions on which the current layer's output matters: after the last layer, those that are read."""
        return self.valid if len(self.calls) > 1 else self.read


def open_streams(model: PreTrainedModel, layers: Sequence[str], batches: Iterable[Batch]) -> list[Stream]:
    """Runs the embeddings on every batch and records how the layers would be called."""
    streams = []
    for batch in batches:
        inputs = without_labels(batch)
        first, calls = record_layer_calls(model, layers, inputs)
        valid = valid_tokens(batch).to(first.device)
        if valid.shape != first.shape[:2]:
            valid = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
        streams.append(Stream(first, first, calls, valid, valid & positions_read(model, layers, inputs)))
    return streams


@contextmanager
def tap_residual(layer: nn.Module, tap: Tap, seen: list[torch.Tensor], stop: bool = False) -> Iterator[None]:
    """Appends the residual stream at `tap` to `seen` on each forward; with `stop` the pass ends there."""
    module = layer.get_submodule(tap.module) if tap.module else layer

    def keep(value: Any) -> None:
        seen.append(value[0] if isinstance(value, tuple) else value)
        if stop:
            raise StopForward

    if tap.side == "input":
        handle = module.register_forward_pre_hook(lambda module, args: keep(args))
    else:
        handle = module.register_forward_hook(lambda module, args, output: keep(output))
    try:
        yield
    finally:
        handle.remove()


def dense_targets(layer: nn.Module, blocks: Sequence[Block], stream: Stream) -> list[torch.Tensor]:
    """Runs the original layer on the dense stream, which moves on.

    Returns:
        For each block the stream after it on the tokens that count, `[tokens, hidden]`, in float32 or better.
    """
    seen: list[list[torch.Tensor]] = [[] for _ in blocks]
    with ExitStack() as taps:
        for block, store in zip(blocks, seen, strict=True):
            taps.enter_context(tap_residual(layer, block.residual, store))
        stream.dense = stream.calls[0].run(layer, stream.dense)
    return [counted_rows(accumulation_dtype(store[0]), stream) for store in seen]


def block_inputs(layer: nn.Module, block: Block, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the cut layer on the pruned stream up to one block.

    Returns:
        The input of the block's output projection on the tokens that count, `[tokens, columns]`, and the residual
        stream without the block's own contribution, `[tokens, hidden]`; both in float32 or better.
    """
    projection = linear_at(layer, block.output)
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        inputs.append(args[0])
        outputs.append(output)

    handle = projection.register_forward_hook(keep)
    try:
        with tap_residual(layer, block.residual, sums, stop=True):
            stream.calls[0].run(layer, stream.pruned)
    except StopForward:
        pass
    finally:
        handle.remove()
    without = accumulation_dtype(sums[0]) - accumulation_dtype(outputs[0].reshape(sums[0].shape))
    return counted_rows(accumulation_dtype(inputs[0]), stream), counted_rows(without, stream)


def counted_rows(values: torch.Tensor, stream: Stream) -> torch.Tensor:
    """The tokens of `[rows, length, size]` (or the same, flattened) that count, as `[tokens, size]`."""
    return values.flatten(0, -2)[stream.counted.flatten()]


def accumulation_dtype(values: torch.Tensor) -> torch.Tensor:
    """Half precision becomes float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()
