"""Choosing group by group: what is left is scored anew on the model as it is cut and repaired so far.

After Park et al. (2024, "K-prune"), who go from the first sublayer to the last; a group may be larger here, and the
last may come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from ...anatomy import Block, ModelAnatomy
from ...budget import Lengths, PlanSoFar, Selection
from ...budget.targets import wanted_keys
from ...calibration import Batch, CalibrationData
from ...recovery import Repair, Units, Walk
from ...surgery import PruningPlan, apply_plan
from ..base import Cut
from ..scored import cut_of
from .config import FisherPruningConfig
from .repair import repair_blocks
from .unit_scores import FisherStatistics

# Groups by default, by order: as many as four passes over the calibration data allow (see `FisherPruningConfig`).
GROUPS = {"forward": 4, "backward": 2}

Select = Callable[[FisherStatistics, PlanSoFar], Selection]


def choose_by_groups(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    first: Cut,
    select: Select,
) -> Cut:
    """Decides and repairs one group of sublayers after the other.

    Args:
        model: the dense model; it is as it was afterwards.
        anatomy, config, data: as for a strategy; with a number as `blend` where scores are blended.
        first: what would be chosen at once. Of this the first group stays.
        select: makes a choice within the budget from the scores of what is left.

    Returns:
        The cut, with its repairs.
    """
    masks = dict(zip((block.key for block in anatomy.blocks), first.plan.masks(anatomy.blocks), strict=True))
    wanted = wanted_keys(anatomy, config)
    pending = sublayers([block for block in anatomy.blocks if block.key in wanted])
    size = config.group_size or math.ceil(len(pending) / GROUPS[config.order])
    selection = Selection(masks, list(first.notes))
    groups = _Groups(model, anatomy, config, data, first.lengths, select, size, selection, pending)
    notes: list[str] = []
    repairs = groups.forward(notes) if config.order == "forward" else groups.backward(notes)
    return replace(first, plan=groups.plan(), repairs=repairs, notes=(*groups.selection.notes, *notes))


def sublayers(blocks: Sequence[Block]) -> list[list[str]]:
    """Keys of the blocks that are decided together at least: all experts of a layer, or one block."""
    found: dict[str, list[str]] = {}
    for block in blocks:
        found.setdefault(block.group or block.key, []).append(block.key)
    return list(found.values())


@dataclass
class _Groups:
    """What `choose_by_groups` is given, and how far it is.

    Attributes:
        size: sublayers in a group.
        selection: the choice for all blocks, as it was made last.
        pending: the sublayers that are not decided yet.
    """

    model: PreTrainedModel
    anatomy: ModelAnatomy
    config: FisherPruningConfig
    data: CalibrationData
    lengths: int | Lengths
    select: Select
    size: int
    selection: Selection
    pending: list[list[str]]
    started: bool = False

    def forward(self, notes: list[str]) -> Mapping[str, Repair]:
        """Decides a group whenever the repair gets to a block that is not decided."""
        return repair_blocks(self.model, self.anatomy, self.config, self.data, self._reached, notes)

    def _reached(self, block: Block, walk: Walk) -> Units:
        place = next((index for index, keys in enumerate(self.pending) if block.key in keys), None)
        if place is not None:
            if self.started:
                with walk.cut_so_far() as batches:
                    statistics = self._measured(batches)
                self._choose_again(statistics)
            self._decide(place)
        return self._decided_units()

    def backward(self, notes: list[str]) -> Mapping[str, Repair]:
        """Decides the last group that is left, and repairs all that is decided, until nothing is left."""
        batches = list(self.data.take(self.config.refit_examples))
        self._decide_last()
        repairs = self._repaired(batches, notes)
        while self.pending:
            log = apply_plan(self.model, self.anatomy, PruningPlan(self._decided_units()), repairs)
            try:
                statistics = self._measured(batches)
            finally:
                log.roll_back()
            self._choose_again(statistics)
            self._decide_last()
            notes.clear()
            repairs = self._repaired(batches, notes)
        return repairs

    def _decide_last(self) -> None:
        self._decide(max(0, len(self.pending) - self.size))

    def _repaired(self, batches: Sequence[Batch], notes: list[str]) -> Mapping[str, Repair]:
        units = self._decided_units()
        return repair_blocks(
            self.model, self.anatomy, self.config, self.data, lambda block, walk: units, notes, batches
        )

    def _decide(self, place: int) -> None:
        """The group that begins at a place of `pending` stays as it was chosen last."""
        del self.pending[place : place + self.size]
        self.started = True

    def _measured(self, batches: Sequence[Batch]) -> FisherStatistics:
        """Scores of what is pending, on the model as it is now."""
        keys = self._pending_keys()
        blocks = tuple(block for block in self.anatomy.blocks if block.key in keys)
        layers = tuple(dict.fromkeys(block.layer for block in blocks))
        left = replace(self.anatomy, layers=layers, blocks=blocks)
        return FisherStatistics.collect(self.model, left, self.config, self.data, self.lengths, batches)

    def _choose_again(self, statistics: FisherStatistics) -> None:
        decided = self.selection.masks.keys() - self._pending_keys()
        self.selection = self.select(statistics, PlanSoFar(self.selection.masks, decided))

    def _pending_keys(self) -> set[str]:
        return {key for keys in self.pending for key in keys}

    def plan(self) -> PruningPlan:
        """What was chosen last, of all blocks."""
        return cut_of(self.anatomy, self.selection, self.lengths).plan

    def _decided_units(self) -> dict[str, tuple[int, ...]]:
        pending = self._pending_keys()
        return {key: units for key, units in self.plan().kept.items() if key not in pending}
