"""Layer-wise reconstruction: from the first sublayer to the last, each cut is followed by its repair.

The target of a block is the original model's residual stream after it, minus what the stream of the cut model brings
along on its own (Kwon et al. 2022, Eq. 12), so that a repair also makes up for what earlier cuts left behind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy, UndoLog, cut_block, linear_at, stored, weight_of
from ..calibration import Batch, CalibrationData
from ..scores.gradients import frozen
from .normal_equations import NormalEquations, TokenBuffer
from .streams import Stream, block_inputs, dense_targets, open_streams

# Every fourth batch is held out for choosing regularisation; the final solve uses all of them.
HELD_OUT_EVERY = 4


@dataclass(frozen=True)
class Repair:
    """New weights of a block's output projection on its kept units.

    Attributes:
        weight: `[hidden, kept units × width]`.
        bias: `[hidden]`, or None where the projection has none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class ReconstructionProblem:
    """One block's least-squares problem.

    Attributes:
        block: the block, as in the dense model.
        weight, bias: its output projection on the kept units.
        fit, held_out: sums over two disjoint sets of calibration tokens.
    """

    block: Block
    weight: torch.Tensor
    bias: torch.Tensor | None
    fit: NormalEquations
    held_out: NormalEquations


Solve = Callable[[ReconstructionProblem], Repair | None]


def reconstruct(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    units: Mapping[str, Sequence[int]],
    data: CalibrationData,
    batches: Iterable[Batch],
    solve: Solve,
    progress: Callable[[str], None] = lambda key: None,
) -> dict[str, Repair]:
    """Repairs every block in the order in which they run.

    Args:
        model: the dense model; it is not changed.
        anatomy: from `describe_model`.
        units: kept units of each block, by key.
        data: sums over processes go through it.
        batches: this process's calibration batches; labels are not used.
        solve: turns a block's problem into its repair, or None to leave the block as it is.
        progress: called with each block's key when it is done.

    Returns:
        The repairs by block key.
    """
    repairs: dict[str, Repair] = {}
    with frozen(model), _whole_sequences(model), torch.no_grad():
        streams = open_streams(model, anatomy.layers, batches)
        for name in anatomy.layers:
            original = model.get_submodule(name)
            blocks = anatomy.blocks_of_layer(name)
            targets = [dense_targets(original, blocks, stream) for stream in streams]
            pruned = _cut_copy(original, blocks, units)
            for index, block in enumerate(blocks):
                problem = _problem(pruned, block, [target[index] for target in targets], streams, data)
                repair = solve(problem)
                if repair is not None:
                    _apply(pruned, block, repair)
                    repairs[block.key] = repair
                progress(block.key)
            for stream in streams:
                stream.pruned = stream.calls.pop(0).run(pruned, stream.pruned)
    return repairs


@contextmanager
def _whole_sequences(model: nn.Module) -> Iterator[None]:
    """Feed-forward blocks see the whole sequence at once; chunks would only split what is summed up anyway."""
    chunked = [module for module in model.modules() if getattr(module, "chunk_size_feed_forward", 0)]
    sizes = [module.chunk_size_feed_forward for module in chunked]
    for module in chunked:
        module.chunk_size_feed_forward = 0  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, size in zip(chunked, sizes, strict=True):
            module.chunk_size_feed_forward = size


def _cut_copy(original: nn.Module, blocks: Sequence[Block], units: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of one layer, cut to the kept units."""
    layer = copy.deepcopy(original)
    for block in blocks:
        cut_block(layer, block, units[block.key], UndoLog())
    return layer


def _problem(
    layer: nn.Module, block: Block, targets: Sequence[torch.Tensor], streams: Sequence[Stream], data: CalibrationData
) -> ReconstructionProblem:
    weight, bias = weight_of(layer, block.output), linear_at(layer, block.output).bias
    hidden, columns = weight.shape
    device = weight.device
    parts = [TokenBuffer(NormalEquations.zeros(columns, hidden, device)) for _ in range(2)]
    for index, (target, stream) in enumerate(zip(targets, streams, strict=True)):
        inputs, rest = block_inputs(layer, block, stream)
        held_out = data.batch_number(index) % HELD_OUT_EVERY == 1
        parts[held_out].add(inputs, target - rest)
    fit, held_out_part = (part.flush() for part in parts)
    for tensor in (*fit.tensors(), *held_out_part.tensors()):
        data.sum(tensor)
    return ReconstructionProblem(block, weight, bias, fit, held_out_part)


def _apply(layer: nn.Module, block: Block, repair: Repair) -> None:
    projection = linear_at(layer, block.output)
    projection.weight.copy_(stored(repair.weight, block.output))
    if repair.bias is not None:
        projection.bias.copy_(repair.bias)
