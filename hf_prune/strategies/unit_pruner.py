"""Pruning of heads and filters while a model is trained: masked step by step, cut out at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..anatomy import Block, ModelAnatomy, WeightMatrix, describe_model, groups_of
from ..budget import data_lengths, select_units
from ..budget.targets import in_wanted_units
from ..calibration import CalibrationData
from ..config import StructuredPruningConfig
from ..errors import PruningError
from ..gates import WeightMasks
from ..report.build import block_reports, build_report, count_parameters
from ..report.result import PruningResult
from ..scores import evaluating
from ..surgery import PruningPlan, apply_plan, drop_identity_layers, write_metadata
from .example_data import example_of
from .training import TrainingPruner, schedule_of

UnitScores = Callable[[Any, ModelAnatomy], list[torch.Tensor]]


class UnitPruner(TrainingPruner):
    """Heads and filters that go when the budget's schedule says so, and may come back until training ends.

    A unit is off while its columns of the output projection are zero; so it gets no gradient either. Every checkpoint
    has the model's full shapes, with zeros; the matrices are cut when training has ended.
    """

    def __init__(self, model: Any, config: Any, steps: int, scores: UnitScores) -> None:
        super().__init__(model, config, steps)
        keyword, value = config.budget
        if keyword not in ("flops", "params"):
            raise PruningError(
                f"{keyword}={value} is measured on a model at rest: while it is trained use flops= or params=, or prune"
                " it with prune_model before or afterwards."
            )
        self.anatomy = in_wanted_units(describe_model(self.inner), config)
        if any(block.unit == "experts" for block in self.anatomy.blocks):
            raise PruningError("Whole experts can only be pruned at one go: use prune_model, and train afterwards.")
        self.scores = scores
        self.schedule = schedule_of(config, steps, 1.0, value)
        self._data = CalibrationData([example_of(self.inner, config)], self.inner)
        self._lengths = data_lengths(self.inner, self.anatomy, self._data, config.sequence_length)
        self._units = [torch.ones(block.units, dtype=torch.bool) for block in self.anatomy.blocks]
        self.masks = WeightMasks([output_matrix(self.inner, members[0]) for members in self._together()])
        try:
            self._select(value)  # a budget out of reach shows before training begins
        except BaseException:
            self.masks.remove()
            raise

    def begin(self) -> None:
        """Masks before the first step what the schedule says."""
        if self.schedule.due(0):
            self._update()

    def after_step(self) -> None:
        """Keeps the units off that are off, and chooses anew when it is time."""
        self.masks.apply()
        if self._is_due(self.schedule):
            self._update()

    def _update(self) -> None:
        value = self.schedule.value(self.step)
        if value < 1:
            self._put(self._select(value))

    def _select(self, value: float) -> list[torch.Tensor]:
        with self.masks.lifted():
            found = self.scores(self.inner, self.anatomy)
        scores = {block.key: score for block, score in zip(self.anatomy.blocks, found, strict=True)}
        budget: StructuredPruningConfig = replace(self.config, **{self.config.budget[0]: value})
        selection = select_units(self.inner, self.anatomy, scores, budget, self._data, self._lengths)
        return [selection.masks[block.key] for block in self.anatomy.blocks]

    def _put(self, units: list[torch.Tensor]) -> None:
        """Masks the output projections' columns of units that are off."""
        self._units = units
        by_key = {block.key: mask for block, mask in zip(self.anatomy.blocks, units, strict=True)}
        masks = []
        for members, matrix in zip(self._together(), self.masks.matrices, strict=True):
            mask = torch.ones_like(matrix.parameter, dtype=torch.bool)
            for block in members:
                columns = block.spread(by_key[block.key]).bool().to(mask.device)
                part = mask if block.output.expert is None else mask[int(block.output.expert)]
                part &= columns[:, None] if block.output.transposed else columns
            masks.append(mask)
        self.masks.set(masks)

    def _together(self) -> list[list[Block]]:
        """The blocks by the parameter that their output projection is; experts share one."""
        single = [[block] for block in self.anatomy.blocks if block.group is None]
        return single + [list(members) for members in groups_of(self.anatomy.blocks)]

    @property
    def reached(self) -> bool:
        """Whether the schedule has come to its end."""
        return self.schedule.reached(self.step)

    def logs(self) -> dict[str, float]:
        """The share of the dense model's FLOPs and of its units that are on."""
        rows = block_reports(self.anatomy, PruningPlan.from_masks(self.anatomy.blocks, self._units), self._lengths)
        dense = sum(row.flops(row.dense_units) for row in rows)
        return {
            "flops": sum(row.flops(row.kept_units) for row in rows) / dense,
            "heads": _share(rows, "attention"),
            "filters": _share(rows, "feed_forward"),
        }

    def state(self) -> dict[str, torch.Tensor]:
        """Which units are on, and the columns of those that are off."""
        units = {f"{block.key}.units": mask for block, mask in zip(self.anatomy.blocks, self._units, strict=True)}
        return self.masks.state() | units

    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Goes on where `state` was taken."""
        units = [tensors.get(f"{block.key}.units") for block in self.anatomy.blocks]
        for block, mask in zip(self.anatomy.blocks, units, strict=True):
            if mask is None or mask.dtype != torch.bool or mask.shape != (block.units,):
                raise PruningError(f"{block.key}: the stored mask does not fit {block.units} units.")
        self.masks.load_state(tensors)
        self._units, self.step = [mask for mask in units if mask is not None], step

    def finish(self) -> PruningResult:
        """A smaller model: what is off is cut out, and the result compared with the masked model."""
        self.let_go()
        self.masks.remove(restore=False)
        model, anatomy, batch = self.inner, self.anatomy, self._data.first()
        parameters = count_parameters(model)
        plan = PruningPlan.from_masks(anatomy.blocks, self._units)
        with evaluating(model):
            plan = drop_identity_layers(model, anatomy, plan, batch)
            apply_plan(model, anatomy, plan, batch=batch)
        report = build_report(
            model=model,
            config=self.config,
            blocks=block_reports(anatomy, plan, self._lengths),
            sequence_length=self._lengths if isinstance(self._lengths, int) else self._lengths.tokens,
            dense_parameters=parameters,
        )
        write_metadata(model, anatomy, plan, self.config.to_dict(), report.costs(), {})
        return PruningResult(model, plan, report, self.config)

    def abandon(self, *, restore: bool = True) -> None:
        """The units that were off are on again."""
        self.let_go()
        if not restore:
            self.masks.delete()
        self.masks.remove(restore=True)


def output_matrix(model: Any, block: Block) -> WeightMatrix:
    """A block's output projection as a matrix to mask."""
    name = f"{block.layer}.{block.output.path}" + ("" if block.output.expert is not None else ".weight")
    return WeightMatrix(name, name.rpartition(".")[0], model.get_parameter(name))


def _share(rows: Any, kind: str) -> float:
    chosen = [row for row in rows if row.kind == kind]
    return sum(row.kept_units for row in chosen) / max(1, sum(row.dense_units for row in chosen))
