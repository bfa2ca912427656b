"""A trade-off curve made of the reports of several cuts of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .curve import CurveLevel, TradeOffCurve
from .report import PruningReport


def curve_of(strategy: Mapping[str, Any], reports: Sequence[PruningReport], budgets: Sequence[float]) -> TradeOffCurve:
    """The dense model and one level per report, in the order of the reports; none has made any step.

    Args:
        strategy: the settings that the sizes were made with.
        reports: of cuts of the same model, at least one.
        budgets: what each was to keep, which becomes its level's detail "budget".
    """
    blocks, metrics = reports[0].blocks, reports[0].metrics
    everything = {block.key: tuple(range(block.dense_units)) for block in blocks}
    dense = CurveLevel(0, 1.0, 1.0, metrics.get("dense", {}), everything)
    levels = [_level(report, budget) for report, budget in zip(reports, budgets, strict=True)]
    return TradeOffCurve(strategy, {block.key: block.kind for block in blocks}, (dense, *levels))


def _level(report: PruningReport, budget: float) -> CurveLevel:
    before, after = report.dense, report.pruned
    return CurveLevel(
        step=0,
        params=after.unit_parameters / before.unit_parameters,
        flops=after.flops / before.flops,
        metrics=report.metrics.get("pruned", {}),
        kept={block.key: block.kept for block in report.blocks},
        details={"budget": budget},
    )
