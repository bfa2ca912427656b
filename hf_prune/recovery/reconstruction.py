"""Layer-wise reconstruction: from the first sublayer to the last, each cut is followed by its repair.

The target of a block is the original model's residual stream after it, minus what the stream of the cut model brings
along on its own (Kwon et al. 2022, Eq. 12), so that a repair also makes up for what earlier cuts left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
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
from ..kept_steps import KeptStep
from ..offloading import copy_in_memory, onloaded, tensor_store
from ..scores.gradients import frozen
from .normal_equations import NormalEquations, TokenBuffer
from .repaired_weights import Repair, StoredRepairs, put_repair
from .resumed import resumed, resumes_exactly, starting_from
from .streams import Stream, few_examples, open_streams, swapped, whole_sequences
from .targets import Step, block_inputs, find_steps, find_targets

# Every fourth batch is held out for choosing regularisation; the final solve uses all of them.
HELD_OUT_EVERY = 4


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


Units = Mapping[str, Sequence[int]]
Solve = Callable[[ReconstructionProblem], Repair | None]
Choose = Callable[[Block, "Walk"], Units]


def reconstruct(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    units: Units | Choose,
    data: CalibrationData,
    batches: Iterable[Batch],
    solve: Solve,
    progress: Callable[[str], None] = lambda key: None,
) -> Mapping[str, Repair]:
    """Repairs every block in the order in which they run.

    One layer at a time is in memory of an offloaded model, and one batch; hidden states and repairs are in files.
    A step of `data.steps`: with the repairs that an interrupted run has kept, the hidden states come out as they were.

    Args:
        model: the dense model; it is not changed.
        anatomy: from `describe_model`.
        units: kept units of each block, by key; blocks that are not named stay as they are. Or a function that chooses
            them on the way: it gets the next block that nothing is known of and what there is so far, and returns the
            units of that block and of any others (of a group of experts all of them).
        data: sums over processes go through it.
        batches: this process's batches from `data`; labels are not used.
        solve: turns a block's problem into its repair, or None to leave the block as it is.
        progress: called with each block's key when it is done.

    Returns:
        The repairs by block key.

    Raises:
        PruningError: hidden states that are not finite, or batches that run through the model in different ways.
    """
    choose = units if callable(units) else lambda block, walk: units
    repairs = StoredRepairs(tensor_store(model))
    step = data.steps.step("repair")
    walk = Walk(model, anatomy, list(batches), data, choose, solve, progress, step, repairs=repairs)
    with frozen(model), whole_sequences(model), torch.no_grad():
        inputs = without_labels(few_examples(data.first()))
        steps = find_steps(model, anatomy, inputs)
        for segment in find_segments(model, anatomy.layers, inputs):
            walk.pass_segment(segment, steps)
    for block in anatomy.blocks:
        if block.key not in walk.passed:
            progress(block.key)
    return walk.repairs


@dataclass
class Walk:
    """A reconstruction on its way through a model.

    Attributes:
        model, anatomy, batches, data, choose, solve, progress: what `reconstruct` is given.
        step: keeps the repairs.
        units: the units of the blocks that were chosen so far, by key.
        repairs: the repairs so far, by key.
        passed: keys of the blocks behind.
    """

    model: PreTrainedModel
    anatomy: ModelAnatomy
    batches: list[Batch]
    data: CalibrationData
    choose: Choose
    solve: Solve
    progress: Callable[[str], None]
    step: KeptStep
    units: dict[str, Sequence[int]] = field(default_factory=dict)
    repairs: MutableMapping[str, Repair] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)
    # What the model becomes, kept out of it except where it is to be seen, and passed blocks that are not in there yet.
    _cuts: UndoLog = field(default_factory=UndoLog)
    _uncut: list[Block] = field(default_factory=list)
    _place: tuple[Segment, str, Sequence[Stream]] | None = None
    _resumes: dict[Segment, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._cuts.swap()

    @contextmanager
    def cut_so_far(self) -> Iterator[list[Batch]]:
        """The model with every cut and repair so far, with gradients enabled; for use while units are chosen.

        Yields:
            This process's batches. Where that is exact they start from the hidden states before the current layer, and
            the layers behind are not run again.
        """
        assert self._place is not None
        segment, layer, streams = self._place
        resumes = layer != segment.layers[0] and self._resumes_in(segment)
        self._catch_up()
        with (
            swapped(self._cuts),
            torch.enable_grad(),
            resumed(self.model, segment, layer) if resumes else nullcontext(),
        ):
            if resumes:
                yield [starting_from(self.batches[stream.number], stream.pruned) for stream in streams]
            else:
                yield self.batches

    def _resumes_in(self, segment: Segment) -> bool:
        if segment not in self._resumes:
            inputs = without_labels(few_examples(self.data.first()))
            self._resumes[segment] = resumes_exactly(self.model, segment, inputs)
        return self._resumes[segment]

    def pass_segment(self, segment: Segment, steps: Mapping[str, Sequence[Step]]) -> None:
        """Repairs the layers of a segment.

        Args:
            segment: the next one.
            steps: by layer the blocks that can be repaired, from `find_steps`.
        """
        started = bool(self.passed)
        if started:
            self._catch_up()
        streams = open_streams(self.model, segment, self.batches, self._cuts, cut=started)
        for name in segment.layers:
            self._place = segment, name, streams
            self._pass_layer(name, steps[name], streams, last=name == segment.layers[-1])

    def _pass_layer(self, name: str, steps: Sequence[Step], streams: Sequence[Stream], last: bool) -> None:
        """Repairs one layer's blocks; the streams move on behind it, unless nothing in the segment is left."""
        original = self.model.get_submodule(name)
        left = self.anatomy.blocks_of_layer(name)
        places = {step.block.key: index for index, step in enumerate(steps)}
        with onloaded(original):
            pruned = copy_in_memory(original)
            for stream in streams:
                find_targets(original, steps, stream)
        for block in _as_they_run(left, places):
            left = self._cut_chosen(block, pruned, left)
            if block.key in self.units and block.key in places:
                repair = self._repair(pruned, steps, places[block.key], streams)
                if repair is not None:
                    _apply(pruned, block, repair)
                    self.repairs[block.key] = repair
            self.passed.add(block.key)
            self._uncut.append(block)
            self.progress(block.key)
        for stream in streams:
            if not last:
                stream.pruned = stream.pruned_calls[0].run(pruned, stream.pruned)
            del stream.dense_calls[0], stream.pruned_calls[0]
            for step in steps:
                del stream.kept[step.block.key]

    def _cut_chosen(self, block: Block, layer: nn.Module, left: Sequence[Block]) -> tuple[Block, ...]:
        """Cuts every block of a layer whose units are known, those of `block` in any case; returns the others."""
        if block.key not in self.units:
            self.units.update(self.choose(block, self))
        cut_layer(layer, [other for other in left if other.key in self.units], self.units, UndoLog())
        return tuple(other for other in left if other.key not in self.units)

    def _repair(self, layer: nn.Module, steps: Sequence[Step], index: int, streams: Sequence[Stream]) -> Repair | None:
        """A block's repair, from an interrupted run or anew; None to leave the block as it is."""
        block = steps[index].block
        own = Repair(weight_of(layer, block.output), linear_at(layer, block.output).bias)
        sizes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in own.tensors().items()}
        kept = self.step.read(block.key, sizes, own.weight.device)
        if kept is not None:
            return Repair(kept[0]["weight"], kept[0].get("bias"))
        repair = self.solve(self._problem(layer, steps, index, streams))
        if repair is not None:
            self.step.write(block.key, repair.tensors())
        return repair

    def _problem(
        self,
        layer: nn.Module,
        steps: Sequence[Step],
        index: int,
        streams: Sequence[Stream],
    ) -> ReconstructionProblem:
        block = steps[index].block
        weight, bias = weight_of(layer, block.output), linear_at(layer, block.output).bias
        hidden, columns = weight.shape
        parts = [TokenBuffer(NormalEquations.zeros(columns, hidden, weight.device)) for _ in range(2)]
        for stream in streams:
            inputs, rest = block_inputs(layer, steps, index, stream)
            held_out = self.data.batch_number(stream.number) % HELD_OUT_EVERY == 1
            parts[held_out].add(inputs, stream.kept[block.key] - rest)
        fit, held_out_part = (part.flush() for part in parts)
        for tensor in (*fit.tensors(), *held_out_part.tensors()):
            self.data.sum(tensor)
        if not (fit.is_finite() and held_out_part.is_finite()):
            raise PruningError(
                f"{block.key}: hidden states on the calibration data are not finite, so it cannot be repaired. Look for"
                " overflow in half precision, or use recovery='none'."
            )
        owners = _kept_owners(block, self.units[block.key]).to(weight.device)
        return ReconstructionProblem(block, weight, bias, owners, fit, held_out_part)

    def _catch_up(self) -> None:
        """Cuts and repairs in `_cuts` what was passed since the last time."""
        blocks = [block for block in self._uncut if block.key in self.units]
        self._uncut = []
        fewer = {block.key for block in blocks if len(self.units[block.key]) < block.units}
        with swapped(self._cuts):
            give_own_tables(self.model, self.anatomy.blocks, fewer, self._cuts)
            cut_model(self.model, blocks, self.units, self._cuts)
            for block in blocks:
                if block.key in self.repairs:
                    put_repair(self.model.get_submodule(block.layer), block, self.repairs, self._cuts)


def _as_they_run(blocks: Sequence[Block], places: Mapping[str, int]) -> list[Block]:
    """A layer's blocks by the places that were seen; others come after the one before them."""
    place, order = -1, []
    for block in blocks:
        place = places.get(block.key, place)
        order.append((place, block))
    return [block for _, block in sorted(order, key=lambda pair: pair[0])]


def _kept_owners(block: Block, units: Sequence[int]) -> torch.Tensor:
    """For each column that stays in the output projection the place of its unit among the kept ones."""
    kept = kept_indices(block.columns, units)
    return torch.from_numpy(np.searchsorted(np.asarray(units, dtype=np.int64), block.columns[kept]))


def _apply(layer: nn.Module, block: Block, repair: Repair) -> None:
    projection = linear_at(layer, block.output)
    projection.weight.copy_(stored(repair.weight, block.output))
    if repair.bias is not None:
        projection.bias.copy_(repair.bias)
