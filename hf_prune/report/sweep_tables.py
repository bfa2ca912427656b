"""Several cuts of one model side by side: which of them no other beats, and all of them as rows of text."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from .number_text import count_text, metric_texts, share_text, speedup_text
from .report import PruningReport

ON_FRONT = "yes"


def pareto_front(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """The places of those that no other beats: none is as cheap and as good, and better in one of the two.

    Args:
        costs: less is better.
        qualities: more is better; NaN is worse than everything.
    """
    points = [(cost, -math.inf if math.isnan(value) else value) for cost, value in zip(costs, qualities, strict=True)]

    def beaten(cost: float, quality: float) -> bool:
        return any(other <= cost and value >= quality and (other, value) != (cost, quality) for other, value in points)

    return [place for place, point in enumerate(points) if not beaten(*point)]


def sweep_rows(
    keyword: str, budgets: Sequence[float], reports: Sequence[PruningReport], front: Collection[int] | None = None
) -> tuple[list[str], list[list[str]]]:
    """The dense model and one row per cut.

    Args:
        keyword: what the budgets count.
        budgets: of each cut.
        reports: of each cut, at least one.
        front: places of the cuts that no other beats; None leaves the column out.

    Returns:
        The header and the rows. Costs are shares of the dense model's, a metric is followed by its difference.
    """
    first = reports[0]
    timed = first.pruned.latency is not None
    metrics = list(first.metrics.get("dense", {}))
    header = [keyword, "FLOPs", "attention and FFN parameters", "all parameters", *["speed-up"] * timed, *metrics]
    dense = ["dense", "100.0 %", "100.0 %", count_text(first.dense.parameters), *["–"] * timed]
    dense += [metric_texts(first.metrics["dense"][name], None)[0] for name in metrics]
    rows = [dense, *(_row(budget, report) for budget, report in zip(budgets, reports, strict=True))]
    if front is not None:
        header.append("on the front")
        rows = [[*row, ON_FRONT if place in front else ""] for place, row in enumerate(rows, -1)]
    return header, rows


def _row(budget: float, report: PruningReport) -> list[str]:
    before, after = report.dense, report.pruned
    row = [f"{budget:g}", share_text(after.flops, before.flops)]
    row += [share_text(after.unit_parameters, before.unit_parameters), count_text(after.parameters)]
    if before.latency is not None and after.latency is not None:
        row.append(speedup_text(before.latency, after.latency))
    for name, value in report.metrics.get("dense", {}).items():
        _, text, difference = metric_texts(value, report.metrics["pruned"][name])
        row.append(f"{text} ({difference})")
    return row
