"""What recovery training adds to each way to prune: the same models before it and after it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from accuracy_cells import TRAINED_FLOPS, trained
from accuracy_modes import MODES, Mode
from accuracy_results import AccuracyResults, Summary, mean_seconds, scope_title, summary_text
from markdown_tables import markdown_table

BeforeAndAfter = tuple[Summary | None, Summary | None]


def training_parts(results: AccuracyResults, rows: str) -> Iterator[str]:
    """A table for every task and one for their mean, if anything was trained.

    Args:
        results: what was measured.
        rows: on which.
    """
    for scope in results.scopes:
        found = {mode: [_before_and_after(results, scope, mode, flops) for flops in TRAINED_FLOPS] for mode in MODES}
        if any(after for pairs in found.values() for _, after in pairs):
            yield f"## Recovery training after each mode: {scope_title(scope, rows)}"
            yield _table(found)


def _before_and_after(results: AccuracyResults, scope: str | None, mode: Mode, flops: float) -> BeforeAndAfter:
    """Of the same calibration samples."""
    name = trained(mode.ablation)
    before = results.summary(scope, flops, mode.recovery, mode.ablation, beside=name)
    return before, results.summary(scope, flops, mode.recovery, name)


def _table(found: dict[Mode, list[BeforeAndAfter]]) -> str:
    rows = [
        [mode.title, *map(summary_text, chain(*pairs)), mean_seconds(after for _, after in pairs)]
        for mode, pairs in found.items()
        if any(after for _, after in pairs)
    ]
    headers = [header for flops in TRAINED_FLOPS for header in (f"FLOPs {flops}", f"{flops}, trained")]
    return markdown_table(["pruned by", *headers, "seconds of training"], rows)
