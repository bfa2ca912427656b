"""What the blocks of the dense model compute from, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy, UndoLog, linear_at, weight_of
from ..anatomy.segments import find_segments
from ..calibration import Batch, CalibrationData, without_labels
from ..errors import PruningError
from ..offloading import onloaded
from ..scores.gradients import frozen
from .normal_equations import NormalEquations, TokenBuffer
from .streams import Stream, counted_rows, few_examples, open_streams, whole_sequences
from .targets import find_steps

# Of a sum of squares: more than rounding leaves when the square of the mean is taken off.
ROUNDING = 1e-6


@dataclass(frozen=True)
class DenseBlock:
    """A block's output projection and what enters it.

    Attributes:
        block: the block.
        weight: of its output projection, `[hidden, columns]`, float64.
        columns: the unit that each column belongs to, `[columns]`.
        gram: E[h hᵀ] over tokens of the inputs h, `[columns, columns]`, float64; their covariance where the projection
            has a bias, because that is what a new bias leaves.
    """

    block: Block
    weight: torch.Tensor
    columns: torch.Tensor
    gram: torch.Tensor


def visit_dense_blocks(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    data: CalibrationData,
    batches: Iterable[Batch],
    visit: Callable[[DenseBlock], None],
    progress: Callable[[str], None] = lambda key: None,
    known: Collection[str] = (),
) -> None:
    """Runs the calibration data through the layers once, and shows every block whose output can be refitted.

    Those are not: experts, and blocks that do not run on this data. The statistics of one layer are in memory at a
    time.

    Args:
        model: the dense model; it is not changed.
        anatomy: from `describe_model`.
        data: sums over processes go through it.
        batches: this process's batches from `data`; labels are not used.
        visit: called with each block.
        progress: called with each block's key when it is done.
        known: keys of blocks that need not be shown.

    Raises:
        PruningError: hidden states that are not finite, or batches that run through the model in different ways.
    """
    seen: set[str] = set()
    pending = list(batches)
    with frozen(model), whole_sequences(model), torch.no_grad():
        inputs = without_labels(few_examples(data.first()))
        steps = find_steps(model, anatomy, inputs)
        wanted = {name: [step.block for step in found if step.block.key not in known] for name, found in steps.items()}
        for segment in find_segments(model, anatomy.layers, inputs) if any(wanted.values()) else ():
            streams = open_streams(model, segment, pending, UndoLog(), cut=False)
            for name in segment.layers:
                layer, blocks = model.get_submodule(name), wanted[name]
                with onloaded(layer):
                    sums = _input_sums(layer, blocks, streams, data)
                    for block in blocks:
                        visit(_dense_block(layer, block, sums.pop(0)))  # they are not needed beside the means
                        seen.add(block.key)
                        progress(block.key)
    for block in anatomy.blocks:
        if block.key not in seen:
            progress(block.key)


def mean_gram(equations: NormalEquations, centred: bool) -> torch.Tensor:
    """E[h hᵀ] over tokens, `[columns, columns]`; if `centred` the covariance, which is what a free bias leaves.

    Inputs that do not vary have none: what rounding makes of the difference is not taken for one.
    """
    tokens = equations.tokens.clamp(min=1)
    gram, mean = equations.gram[:-1, :-1] / tokens, equations.gram[:-1, -1] / tokens
    if not centred:
        return gram
    squares = gram.diagonal().sum()
    gram.addr_(mean, mean, alpha=-1)
    varies = gram.diagonal().sum() > ROUNDING * squares
    return gram if varies else gram.zero_()


def _input_sums(
    layer: nn.Module, blocks: Sequence[Block], streams: Sequence[Stream], data: CalibrationData
) -> list[NormalEquations]:
    """Runs a layer on all streams, which move on: the sums over what enters its blocks' output projections."""
    weights = [weight_of(layer, block.output) for block in blocks]
    buffers = [TokenBuffer(NormalEquations.zeros(weight.shape[1], 0, weight.device)) for weight in weights]
    for stream in streams:
        with ExitStack() as hooks:
            for block, buffer in zip(blocks, buffers, strict=True):
                hook = partial(_add_inputs, buffer, stream)
                hooks.callback(linear_at(layer, block.output).register_forward_pre_hook(hook).remove)
            stream.dense = stream.pruned = stream.dense_calls[0].run(layer, stream.dense)
        del stream.dense_calls[0], stream.pruned_calls[0]  # nothing is cut: both streams are one
    sums = [buffer.flush() for buffer in buffers]
    for block, equations in zip(blocks, sums, strict=True):
        for tensor in equations.tensors():
            data.sum(tensor)
        if not equations.is_finite():
            raise PruningError(
                f"{block.key}: hidden states on the calibration data are not finite, so it is not known what its refit"
                " could save. Look for overflow in half precision, or use importance='fisher'."
            )
    return sums


def _add_inputs(buffer: TokenBuffer, stream: Stream, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    rows = counted_rows(args[0], stream)
    buffer.add(rows, rows.new_zeros(len(rows), 0))


def _dense_block(layer: nn.Module, block: Block, equations: NormalEquations) -> DenseBlock:
    weight = weight_of(layer, block.output).double()
    gram = mean_gram(equations, centred=linear_at(layer, block.output).bias is not None)
    return DenseBlock(block, weight, torch.from_numpy(block.columns).to(weight.device), gram)
