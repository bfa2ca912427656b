"""What strategies share that take heads and filters off a model while it is trained, and cut them out at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..anatomy import Block, ModelAnatomy, WeightMatrix, groups_of, oriented
from ..budget import data_lengths
from ..budget.positions import check_length
from ..calibration import CalibrationData
from ..errors import PruningError
from ..gates import WeightMasks
from ..report.build import block_reports, build_report, count_parameters
from ..report.report import BlockReport
from ..report.result import PruningResult
from ..scores import evaluating
from ..surgery import PruningPlan, apply_plan, drop_identity_layers, write_metadata
from .example_data import example_of
from .training import TrainingPruner


class MaskedUnitsPruner(TrainingPruner):
    """Heads and filters that are off for the time being.

    A unit is off while its columns of the output projection are zero; so it gets no gradient either. Every checkpoint
    has the model's full shapes, with zeros; the matrices are cut when training has ended.

    Args:
        anatomy: the blocks whose units may go off.
        with_bias: an FFN that has lost every filter loses its output bias as well, so that nothing is left of it.

    Attributes:
        units: one bool tensor per block, True where a unit is on; change them with `put`.
        masks: the masks on the output projections.
    """

    def __init__(self, model: Any, config: Any, steps: int, anatomy: ModelAnatomy, *, with_bias: bool = False) -> None:
        super().__init__(model, config, steps)
        if any(block.unit == "experts" for block in anatomy.blocks):
            raise PruningError("Whole experts can only be pruned at one go: use prune_model, and train afterwards.")
        if config.sequence_length is not None:
            check_length(self.inner, config.sequence_length)
        self.anatomy = anatomy
        self.data = CalibrationData([example_of(self.inner, config)], self.inner)
        self.lengths = data_lengths(self.inner, anatomy, self.data, config.sequence_length)
        self.units = [torch.ones(block.units, dtype=torch.bool) for block in anatomy.blocks]
        self._together = _by_parameter(anatomy.blocks)
        self._biased = [block for block in anatomy.blocks if with_bias and _has_own_bias(block)]
        matrices = [output_matrix(self.inner, members[0]) for members in self._together]
        self.masks = WeightMasks(matrices + [_output_bias(self.inner, block) for block in self._biased])

    def put(self, units: Sequence[torch.Tensor]) -> None:
        """Masks the output projections' columns of units that are off."""
        self.units = list(units)
        by_key = {block.key: mask for block, mask in zip(self.anatomy.blocks, self.units, strict=True)}
        masks = [over_columns(matrix.parameter, members, by_key) for members, matrix in self.projections]
        for block, matrix in zip(self._biased, self.masks.matrices[len(masks) :], strict=True):
            masks.append(torch.full_like(matrix.parameter, bool(by_key[block.key].any()), dtype=torch.bool))
        self.masks.set(masks)

    @property
    def projections(self) -> list[tuple[list[Block], WeightMatrix]]:
        """The output projections, each with the blocks that it belongs to."""
        return list(zip(self._together, self.masks.matrices, strict=False))

    @property
    def rows(self) -> list[BlockReport]:
        """What is on now, block by block, with its cost."""
        return self.rows_of(self.units)

    def rows_of(self, units: Sequence[torch.Tensor]) -> list[BlockReport]:
        """What some units cost, block by block."""
        return list(block_reports(self.anatomy, PruningPlan.from_masks(self.anatomy.blocks, list(units)), self.lengths))

    def logs(self) -> dict[str, float]:
        """The share of the dense model's FLOPs and of its units that are on."""
        rows = self.rows
        dense = sum(row.flops(row.dense_units) for row in rows)
        return {
            "flops": sum(row.flops(row.kept_units) for row in rows) / dense,
            "heads": _share(rows, "attention"),
            "filters": _share(rows, "feed_forward"),
        }

    def state(self) -> dict[str, torch.Tensor]:
        """Which units are on, and the columns of those that are off."""
        units = {f"{block.key}.units": mask for block, mask in zip(self.anatomy.blocks, self.units, strict=True)}
        return self.masks.state() | units

    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Goes on where `state` was taken."""
        units = stored_masks(self.anatomy.blocks, tensors, "units")
        self.masks.load_state(tensors)
        self.units, self.step = units, step

    def finish(self) -> PruningResult:
        """A smaller model: what is off is cut out, and the result compared with the masked model."""
        self.let_go()
        self.masks.remove(restore=False)
        return self.cut(self.inner, self.units)

    def cut(self, model: Any, units: Sequence[torch.Tensor]) -> PruningResult:
        """Cuts units out of a model, the trained one or one like it, in which they are zero already."""
        anatomy, batch = self.anatomy, self.data.first()
        parameters = count_parameters(model)
        plan = PruningPlan.from_masks(anatomy.blocks, list(units))
        with evaluating(model):
            plan = drop_identity_layers(model, anatomy, plan, batch)
            apply_plan(model, anatomy, plan, batch=batch)
        report = build_report(
            model=model,
            config=self.config,
            blocks=block_reports(anatomy, plan, self.lengths),
            sequence_length=self.lengths if isinstance(self.lengths, int) else self.lengths.tokens,
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


def over_columns(parameter: torch.Tensor, blocks: Sequence[Block], values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A tensor of an output projection's shape in which all columns of a unit have the unit's value.

    Args:
        parameter: the projection's weight.
        blocks: those that it belongs to: one, or several experts.
        values: one tensor `[units]` per block, by key.
    """
    spread = torch.ones_like(parameter, dtype=values[blocks[0].key].dtype)
    for block in blocks:
        oriented(spread, block.output).mul_(block.spread(values[block.key]).to(spread.device))
    return spread


def stored_masks(blocks: Sequence[Block], tensors: Mapping[str, torch.Tensor], name: str) -> list[torch.Tensor]:
    """The mask of every block that a state holds as `<block's key>.<name>`.

    Raises:
        PruningError: one is missing, or is no bool tensor of the block's units.
    """
    masks = []
    for block in blocks:
        mask = tensors.get(f"{block.key}.{name}")
        if mask is None or mask.dtype != torch.bool or mask.shape != (block.units,):
            raise PruningError(f"{block.key}: the stored mask does not fit {block.units} units.")
        masks.append(mask)
    return masks


def output_matrix(model: Any, block: Block) -> WeightMatrix:
    """A block's output projection as a matrix to mask."""
    name = f"{block.layer}.{block.output.path}" + ("" if block.output.expert is not None else ".weight")
    return WeightMatrix(name, name.rpartition(".")[0], model.get_parameter(name))


def _output_bias(model: Any, block: Block) -> WeightMatrix:
    """The bias of a block's output projection, to be masked as a whole."""
    name = f"{block.layer}.{block.output.path}.bias"
    return WeightMatrix(name, name.rpartition(".")[0], model.get_parameter(name))


def _has_own_bias(block: Block) -> bool:
    return block.kind == "feed_forward" and block.output.bias and block.output.expert is None


def _by_parameter(blocks: Sequence[Block]) -> list[list[Block]]:
    """The blocks by the parameter that their output projection is; experts share one."""
    single = [[block] for block in blocks if block.group is None]
    return single + [list(members) for members in groups_of(blocks)]


def _share(rows: Sequence[BlockReport], kind: str) -> float:
    chosen = [row for row in rows if row.kind == kind]
    return sum(row.kept_units for row in chosen) / max(1, sum(row.dense_units for row in chosen))
