"""What a block is to produce, so that the cut model's residual stream is the dense one's again.

Where a layer adds its blocks' outputs to its input, the stream after each block is a running sum; whether it does is
seen by computing that sum. Where a layer normalises after the sum, the stream is read at that norm's input. In other
layers (norms or scales between a block and the stream) the block has to produce what it produced in the dense model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy, Tap, linear_at
from ..anatomy.layer_calls import Forward, LayerCall, StopForward, hidden_of, replaced_forwards, run_model
from ..anatomy.reading import has_path
from ..offloading import device_of
from .streams import Stream, counted_rows

# "sum": the layer's input plus the outputs of its blocks so far; "tap": what the layout's tap shows; "output": the
# block's own output.
Target = Literal["sum", "tap", "output"]

# Largest accepted difference between a layer's output and the running sum, relative to the blocks' outputs.
ADDITIVE = {torch.float64: 1e-3, torch.float32: 1e-3}
ADDITIVE_HALF = 3e-2


@dataclass(frozen=True)
class Step:
    """A block as its layer runs it, and where its target is read."""

    block: Block
    target: Target


class _Watch:
    """What a layer shows while it runs: its blocks' first outputs, and after each of them the stream at its tap.

    Args:
        keep: makes what is kept of a tensor.
        stop: whether the pass ends at the first tap.
    """

    def __init__(self, keep: Callable[[torch.Tensor], torch.Tensor], stop: bool = False) -> None:
        self.keep, self.stop = keep, stop
        self.outputs: dict[str, torch.Tensor] = {}
        self.taps: dict[str, torch.Tensor] = {}

    def output(self, key: str, value: torch.Tensor) -> None:
        if key not in self.outputs:
            self.outputs[key] = self.keep(value)

    def tap(self, key: str, value: torch.Tensor) -> None:
        if key in self.outputs and key not in self.taps:  # a layer that normalises first has its norm before the block
            self.taps[key] = self.keep(value)
            if self.stop:
                raise StopForward

    @contextmanager
    def on(self, layer: nn.Module, blocks: Iterable[Block], taps: Iterable[Block]) -> Iterator[None]:
        """Watches the outputs of `blocks` and the taps of `taps` in a layer."""
        handles = [
            linear_at(layer, block.output).register_forward_hook(
                lambda module, args, output, key=block.key: self.output(key, output)
            )
            for block in blocks
        ]
        handles += [
            _on_tap(layer, block.residual, partial(self.tap, block.key))
            for block in taps
            if block.residual is not None and has_path(layer, block.residual.module)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _on_tap(layer: nn.Module, tap: Tap, watch: Callable[[torch.Tensor], None]) -> RemovableHandle:
    module = layer.get_submodule(tap.module)
    if tap.side == "input":
        return module.register_forward_pre_hook(lambda module, args: watch(args[0]))
    return module.register_forward_hook(lambda module, args, output: watch(hidden_of(output)))


def find_steps(model: PreTrainedModel, anatomy: ModelAnatomy, inputs: Mapping[str, Any]) -> dict[str, tuple[Step, ...]]:
    """For each layer the blocks that run, in the order in which they run, seen in one forward pass.

    Experts are left out: each sees tokens of its own, and their output projections are parts of one parameter.

    Args:
        model: the dense model, in evaluation mode.
        anatomy: from `describe_model`.
        inputs: keyword arguments of `forward`, without labels.
    """
    steps: dict[str, tuple[Step, ...]] = dict.fromkeys(anatomy.layers, ())

    def wrap(name: str, own: Forward) -> Forward:
        layer = model.get_submodule(name)
        blocks = [block for block in anatomy.blocks_of_layer(name) if block.output.expert is None]

        def forward(*args: Any, **kwargs: Any) -> Any:
            if steps[name]:  # the layer runs again
                return own(*args, **kwargs)
            watch = _Watch(torch.Tensor.clone)
            sums = _RunningSum(LayerCall.of(name, args, kwargs)[1].clone(), watch.outputs)
            with watch.on(layer, blocks, blocks), sums.looked_for(layer):
                output = own(*args, **kwargs)
            sums.compare(hidden_of(output))
            steps[name] = _steps(blocks, watch, sums.seen)
            return output

        return forward

    with replaced_forwards(model, anatomy.layers, wrap):
        run_model(model, inputs)
    return steps


class _RunningSum:
    """Finds out for how many of a layer's blocks the stream is the layer's input plus their outputs.

    Args:
        entered: the layer's input.
        outputs: the outputs of its blocks so far; grows while the layer runs.

    Attributes:
        seen: the largest number of blocks whose sum was seen, as a module's input or as the layer's output.
    """

    def __init__(self, entered: torch.Tensor, outputs: Mapping[str, torch.Tensor]) -> None:
        self.entered, self.outputs, self.seen = entered, outputs, 0

    def compare(self, value: Any) -> None:
        """Looks whether a tensor is the sum of what there is."""
        fits = [_fits(output, self.entered) for output in self.outputs.values()]
        if len(fits) <= self.seen or not all(fits) or getattr(value, "shape", None) != self.entered.shape:
            return
        added = [output.double().reshape(value.shape) for output in self.outputs.values()]
        difference = (value.double() - self.entered.double() - torch.stack(added).sum(0)).norm()
        allowed = ADDITIVE.get(value.dtype, ADDITIVE_HALF) * min(float(output.norm()) for output in added)
        if difference <= allowed:
            self.seen = len(fits)

    @contextmanager
    def looked_for(self, layer: nn.Module) -> Iterator[None]:
        """Compares with the input of every module inside the layer."""

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.compare(args[0] if args else kwargs.get("hidden_states"))

        inner = [module for module in layer.modules() if module is not layer]
        handles = [module.register_forward_pre_hook(look, with_kwargs=True) for module in inner]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _steps(blocks: Sequence[Block], watch: _Watch, summed: int) -> tuple[Step, ...]:
    known = {block.key: block for block in blocks}

    def target(index: int, key: str) -> Target:
        tapped = key in watch.taps and _fits(watch.outputs[key], watch.taps[key])
        return "sum" if index < summed else "tap" if tapped else "output"

    return tuple(Step(known[key], target(index, key)) for index, key in enumerate(watch.outputs))


def _fits(value: torch.Tensor, like: torch.Tensor) -> bool:
    """Whether a tensor has the stream's shape, batch and length flattened or not."""
    return value.shape == like.shape or (value.dim() == 2 and value.numel() == like.numel())


def find_targets(layer: nn.Module, steps: Sequence[Step], stream: Stream) -> None:
    """Runs the original layer on the dense stream, which moves on.

    For each block the stream then keeps its target on the positions that count, `[positions, hidden]`: the hidden
    states after it, or its own output; in float32 or better.
    """
    watch = _Watch(partial(counted_rows, stream=stream))
    summed = any(step.target == "sum" for step in steps)
    entered = stream.dense.to(device_of(layer))
    total = counted_rows(entered, stream) if summed else torch.zeros(())
    with watch.on(layer, [step.block for step in steps], [step.block for step in steps if step.target == "tap"]):
        stream.dense = stream.dense_calls[0].run(layer, entered)
    for step in steps:
        key = step.block.key
        if step.target == "sum":
            total = total + watch.outputs[key]
            stream.kept[key] = total
        else:
            stream.kept[key] = watch.taps[key] if step.target == "tap" else watch.outputs[key]


def block_inputs(
    layer: nn.Module, steps: Sequence[Step], index: int, stream: Stream
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the cut layer on the pruned stream as far as one block needs.

    Returns:
        The input of the block's output projection on the positions that count, `[positions, columns]`, and what the
        target contains besides the block's own output, `[positions, hidden]`, or a zero; in float32 or better.
    """
    step, key = steps[index], steps[index].block.key
    tapped = [step.block] if step.target == "tap" else []
    watched = [earlier.block for earlier in steps[:index]] if step.target == "sum" else tapped
    watch = _Watch(partial(counted_rows, stream=stream), stop=True)
    inputs: list[torch.Tensor] = []
    entered = stream.pruned.to(device_of(layer))

    def keep(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        inputs.append(counted_rows(args[0], stream))
        if not tapped:
            raise StopForward

    handle = linear_at(layer, step.block.output).register_forward_pre_hook(keep)
    try:
        with watch.on(layer, watched, tapped), suppress(StopForward):
            stream.pruned_calls[0].run(layer, entered)
    finally:
        handle.remove()
    if tapped:
        return inputs[0], watch.taps[key] - watch.outputs[key]
    if step.target == "sum":
        return inputs[0], sum(watch.outputs.values(), start=counted_rows(entered, stream))
    return inputs[0], inputs[0].new_zeros(())
