"""Layer-wise reconstruction: from the first sublayer to the last, each cut is followed by its repair.

The target of a block is the original model's residual stream after it, minus what the stream of the cut model brings
along on its own (Kwon et al. 2022, Eq. 12), so that a repair also makes up for what earlier cuts left behind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy, UndoLog, cut_layer, cut_model, give_own_tables, linear_at, stored, weight_of
from ..anatomy.layer_calls import Segment
from ..anatomy.projections import kept_indices
from ..anatomy.segments import find_segments
from ..calibration import Batch, CalibrationData, without_labels
from ..errors import PruningError
from ..scores.gradients import frozen
from .normal_equations import NormalEquations, TokenBuffer
from .streams import Stream, few_examples, open_streams, swapped
from .targets import Step, block_inputs, dense_targets, find_steps

# Every fourth batch is held out for choosing regularisation; the final solve uses all of them.
HELD_OUT_EVERY = 4


@dataclass(frozen=True)
class Repair:
    """New weights of a block's output projection on its kept units.

    Attributes:
        weight: `[hidden, columns of the kept units]`.
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
        columns: the kept unit that each column of `weight` belongs to, counted from 0.
        fit, held_out: sums over two disjoint sets of calibration tokens.
    """

    block: Block
    weight: torch.Tensor
    bias: torch.Tensor | None
    columns: torch.Tensor
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
        batches: this process's batches from `data`; labels are not used.
        solve: turns a block's problem into its repair, or None to leave the block as it is.
        progress: called with each block's key when it is done.

    Returns:
        The repairs by block key.

    Raises:
        PruningError: hidden states that are not finite, or batches that run through the model in different ways.
    """
    work = _Reconstruction(model, anatomy, units, data, solve, progress)
    pending = list(batches)
    with frozen(model), whole_sequences(model), torch.no_grad():
        inputs = without_labels(few_examples(data.first()))
        steps = find_steps(model, anatomy, inputs)
        segments = find_segments(model, anatomy.layers, inputs)
        for number, segment in enumerate(segments):
            streams = open_streams(model, segment, pending, work.cuts, cut=number > 0)
            for name in segment.layers:
                work.repair_layer(name, steps[name], streams, last=name == segment.layers[-1])
            if number + 1 < len(segments):
                work.cut_segment(segment)
    repaired = {step.block.key for layer in steps.values() for step in layer}
    for block in anatomy.blocks:
        if block.key not in repaired:
            progress(block.key)
    return work.repairs


@dataclass
class _Reconstruction:
    """What `reconstruct` is given, the repairs so far, and the cut and repaired layers of the segments behind.

    The latter, `cuts`, are kept out of the model except where they are to be seen.
    """

    model: PreTrainedModel
    anatomy: ModelAnatomy
    units: Mapping[str, Sequence[int]]
    data: CalibrationData
    solve: Solve
    progress: Callable[[str], None]
    repairs: dict[str, Repair] = field(default_factory=dict)
    cuts: UndoLog = field(default_factory=UndoLog)

    def __post_init__(self) -> None:
        self.cuts.swap()

    def repair_layer(self, name: str, steps: Sequence[Step], streams: Sequence[Stream], last: bool) -> None:
        """Repairs one layer's blocks; the streams move on behind it, unless nothing in the segment is left."""
        original = self.model.get_submodule(name)
        pruned = copy.deepcopy(original)
        cut_layer(pruned, self.anatomy.blocks_of_layer(name), self.units, UndoLog())
        targets = [dense_targets(original, steps, stream) for stream in streams]
        for index, step in enumerate(steps):
            problem = self._problem(pruned, steps, index, [target[index] for target in targets], streams)
            repair = self.solve(problem)
            if repair is not None:
                _apply(pruned, step.block, repair)
                self.repairs[step.block.key] = repair
            self.progress(step.block.key)
        for stream in streams:
            if not last:
                stream.pruned = stream.pruned_calls[0].run(pruned, stream.pruned)
            del stream.dense_calls[0], stream.pruned_calls[0]

    def _problem(
        self,
        layer: nn.Module,
        steps: Sequence[Step],
        index: int,
        targets: Sequence[torch.Tensor],
        streams: Sequence[Stream],
    ) -> ReconstructionProblem:
        block = steps[index].block
        weight, bias = weight_of(layer, block.output), linear_at(layer, block.output).bias
        hidden, columns = weight.shape
        parts = [TokenBuffer(NormalEquations.zeros(columns, hidden, weight.device)) for _ in range(2)]
        for target, stream in zip(targets, streams, strict=True):
            inputs, rest = block_inputs(layer, steps, index, stream)
            held_out = self.data.batch_number(stream.number) % HELD_OUT_EVERY == 1
            parts[held_out].add(inputs, target - rest)
        fit, held_out_part = (part.flush() for part in parts)
        for tensor in (*fit.tensors(), *held_out_part.tensors()):
            self.data.sum(tensor)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (*fit.tensors(), *held_out_part.tensors())):
            raise PruningError(
                f"{block.key}: hidden states on the calibration data are not finite, so it cannot be repaired. Look for"
                " overflow in half precision, or use recovery='none'."
            )
        owners = _kept_owners(block, self.units[block.key]).to(weight.device)
        return ReconstructionProblem(block, weight, bias, owners, fit, held_out_part)

    def cut_segment(self, segment: Segment) -> None:
        """Adds a segment's layers, cut and repaired, to `cuts`, for the segments that read what they make."""
        blocks = [block for name in segment.layers for block in self.anatomy.blocks_of_layer(name)]
        fewer = {block.key for block in blocks if len(self.units[block.key]) < block.units}
        with swapped(self.cuts):
            give_own_tables(self.model, self.anatomy.blocks, fewer, self.cuts)
            cut_model(self.model, blocks, self.units, self.cuts)
            for block in blocks:
                if block.key in self.repairs:
                    self._put_in(block, self.repairs[block.key])

    def _put_in(self, block: Block, repair: Repair) -> None:
        projection = linear_at(self.model.get_submodule(block.layer), block.output)
        weight = stored(repair.weight, block.output)
        self.cuts.set(projection, "weight", nn.Parameter(weight, requires_grad=False))
        if repair.bias is not None:
            self.cuts.set(projection, "bias", nn.Parameter(repair.bias, requires_grad=False))


@contextmanager
def whole_sequences(model: nn.Module) -> Iterator[None]:
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


def _kept_owners(block: Block, units: Sequence[int]) -> torch.Tensor:
    """For each column that stays in the output projection the place of its unit among the kept ones."""
    kept = kept_indices(block.columns, units)
    return torch.from_numpy(np.searchsorted(np.asarray(units, dtype=np.int64), block.columns[kept]))


def _apply(layer: nn.Module, block: Block, repair: Repair) -> None:
    projection = linear_at(layer, block.output)
    projection.weight.copy_(stored(repair.weight, block.output))
    if repair.bias is not None:
        projection.bias.copy_(repair.bias)
