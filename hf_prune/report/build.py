"""Puts a report together from the model before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy
from ..budget import Lengths, flops_per_unit, generation_flops_per_unit
from ..config import PruningConfig
from ..surgery import PruningPlan
from ..surgery.metadata import pruning_of
from .report import BlockReport, LatencySetting, PruningReport, Size


def block_reports(anatomy: ModelAnatomy, plan: PruningPlan, lengths: int | Lengths) -> tuple[BlockReport, ...]:
    """One entry per block of the model that was pruned; FLOPs are counted for `lengths`."""
    return tuple(
        BlockReport(
            key=block.key,
            kind=block.kind,
            dense_units=block.units,
            kept_units=plan.count(block),
            kept=plan.units(block),
            flops_per_unit=flops_per_unit(block, lengths),
            parameters_per_unit=block.parameters_per_unit,
            generation_flops_per_unit=generation_flops_per_unit(block, lengths),
            experts=block.unit == "experts",
        )
        for block in anatomy.blocks
    )


def build_report(
    *,
    model: PreTrainedModel,
    config: PruningConfig,
    blocks: Sequence[BlockReport],
    sequence_length: int,
    dense_parameters: int,
    latencies: tuple[float, float] | None = None,
    latency_setting: LatencySetting | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    notes: Sequence[str] = (),
) -> PruningReport:
    """The report of a finished cut; `model` is the pruned model, `blocks` from `block_reports`."""
    dense_latency, pruned_latency = latencies or (None, None)
    return PruningReport(
        model_name=name_of(model),
        model_type=model.config.model_type,
        strategy=config.to_dict(),
        sequence_length=sequence_length,
        dense=Size(
            flops=sum(row.flops(row.dense_units) for row in blocks),
            generation_flops=sum(row.generation_flops(row.dense_units) for row in blocks),
            unit_parameters=sum(row.dense_units * row.parameters_per_unit for row in blocks),
            parameters=dense_parameters,
            latency=dense_latency,
        ),
        pruned=Size(
            flops=sum(row.flops(row.kept_units) for row in blocks),
            generation_flops=sum(row.generation_flops(row.kept_units) for row in blocks),
            unit_parameters=sum(row.kept_units * row.parameters_per_unit for row in blocks),
            parameters=count_parameters(model),
            latency=pruned_latency,
        ),
        blocks=tuple(blocks),
        latency_setting=latency_setting,
        metrics={name: dict(values) for name, values in (metrics or {}).items()},
        notes=(*notes, *_of_earlier_pruning(model)),
    )


def _of_earlier_pruning(model: PreTrainedModel) -> list[str]:
    """What to say where the model had lost units before; its metadata is still that of then."""
    earlier = pruning_of(model.config)
    if earlier is None or not earlier["blocks"]:
        return []
    return [
        "The model had been pruned before: 'dense' is what it was after that, and budgets are fractions of it; hf-prune"
        " inspect counts from the sizes that it had at first."
    ]


def name_of(model: PreTrainedModel) -> str:
    """The Hub name, or the last part of a local path: where a folder lies is nobody else's business."""
    name = str(model.config._name_or_path or type(model).__name__)
    return Path(name).resolve().name if Path(name).exists() else name


def count_parameters(model: torch.nn.Module) -> int:
    """All parameters, shared ones once."""
    # While nothing is loaded, nothing but the model says which of an offloaded one's parameters are shared.
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    named = model.named_parameters()
    return sum(parameter.numel() for name, parameter in named if not (parameter.is_meta and name in tied))
