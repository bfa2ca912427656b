"""What residual mappings cost, and whether a goal can be reached by removing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import InfeasibleBudgetError, PruningError
from ...gates import ResidualMapping
from ...report.report import BlockReport


def gate_costs(mappings: Sequence[ResidualMapping], rows: Sequence[BlockReport], *, flops: bool) -> list[float]:
    """What one gate of each mapping stands for, as a share of the dense model's attention and FFN cost.

    Args:
        mappings: where the gates are.
        rows: the dense model's blocks, all of them.
        flops: count FLOPs; otherwise parameters.
    """
    units: Mapping[str, float] = {row.key: row.flops(1) if flops else row.parameters_per_unit for row in rows}
    dense = sum(units[row.key] * row.dense_units for row in rows)
    return [
        units[mapping.key] / dense
        if mapping.kind == "heads"
        else sum(units[block.key] * block.units for block in mapping.blocks) / dense
        for mapping in mappings
    ]


def least_gates(mapping: ResidualMapping) -> int:
    """How many of a mapping's gates must stay."""
    least = max(block.minimum for block in mapping.blocks)
    return least if mapping.kind == "heads" else min(1, least)


def check_goal(mappings: Sequence[ResidualMapping], costs: Sequence[float], goal: tuple[str, float] | None) -> None:
    """Raises an InfeasibleBudgetError where removing mappings cannot lead to the goal; one of them always stays."""
    if goal is None:
        return
    pairs = list(zip(mappings, costs, strict=True))
    removable = sum((mapping.gates - least_gates(mapping)) * cost for mapping, cost in pairs)
    staying = 0.0 if any(least_gates(mapping) for mapping in mappings) else min(costs)
    least = 1.0 - removable + staying
    if goal[1] < least - 1e-9:
        raise InfeasibleBudgetError(
            f"{goal[0]}={goal[1]} cannot be reached by removing these mappings: one always stays, and the smallest"
            f" model keeps {least:.4g} of the attention+FFN cost. Ask for more, or for other units.",
            least,
        )


def check_k(mappings: Sequence[ResidualMapping], k: Mapping[Any, int]) -> None:
    """Raises a PruningError where a kind of mapping has fewer gates than its k."""
    for kind, wanted in k.items():
        count = sum(mapping.gates for mapping in mappings if mapping.kind == kind)
        if wanted > count:
            raise PruningError(f"k={wanted} for {kind}: ε is the k-th smallest of {count}. Choose k from 1 to {count}.")
