"""The ways to prune far, side by side: what each loses at every budget, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from accuracy_cells import ABLATIONS, EXAMPLES, FULL, SMALL_FLOPS
from accuracy_results import AccuracyResults, Summary, mean_seconds, scope_title, summary_text
from markdown_tables import markdown_table

# The largest mean loss over the tasks, in points, that is aimed at without training.
TARGETS = {0.5: 0.5, 0.4: 1.0, 0.3: 2.0, 0.2: 5.0}


@dataclass(frozen=True)
class Mode:
    """One way.

    Attributes:
        title: for people.
        ablation, recovery: of its cells.
    """

    title: str
    ablation: str
    recovery: str = "weights"


MODES = (
    Mode("the paper: Fisher scores, rearranged, mask tuning", FULL, "mask_tuning"),
    Mode("Fisher scores", FULL),
    *(Mode(ablation.title, name) for name, ablation in ABLATIONS.items() if ablation.of_mode and not ablation.trained),
)


def mode_parts(results: AccuracyResults, rows: str) -> Iterator[str]:
    """A table for every task and one for their mean, if anything of them was measured.

    Args:
        results: what was measured.
        rows: on which.
    """
    for scope in results.scopes:
        found = {mode: _summaries(results, scope, mode) for mode in MODES}
        if any(mode.ablation != FULL and any(summaries) for mode, summaries in found.items()):
            yield f"## Modes, with the refit unless it says otherwise: {scope_title(scope, rows)}"
            yield _table(found, scope)
            yield _verdict(found) if scope is None else ""


def _summaries(results: AccuracyResults, scope: str | None, mode: Mode) -> list[Summary | None]:
    return [results.summary(scope, flops, mode.recovery, mode.ablation) for flops in SMALL_FLOPS]


def _table(found: dict[Mode, list[Summary | None]], scope: str | None) -> str:
    rows = [
        [mode.title, *map(summary_text, summaries), mean_seconds(summaries)]
        for mode, summaries in found.items()
        if any(summaries)
    ]
    if scope is None:
        rows.append(["target", *(f"≤ {TARGETS[flops]}" for flops in SMALL_FLOPS), ""])
    return markdown_table([f"{EXAMPLES:,} examples, FLOPs", *map(str, SMALL_FLOPS), "seconds"], rows)


def _verdict(found: dict[Mode, list[Summary | None]]) -> str:
    """At which budgets each mode reaches the target."""
    parts = []
    for mode, summaries in found.items():
        losses = {summary.flops: summary.loss.mean for summary in summaries if summary}
        reached = [str(flops) for flops, loss in losses.items() if loss <= TARGETS[flops]]
        if losses:
            parts.append(f"{mode.title}: {', '.join(reached) or 'none'}")
    return f"Targets reached at: {'; '.join(parts)}." if parts else ""
