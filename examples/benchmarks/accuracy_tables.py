"""The accuracy table as Markdown."""

from __future__ import annotations

from accuracy_cells import ABLATION_FLOPS, ABLATIONS, FLOPS, FULL
from accuracy_modes import mode_parts
from accuracy_results import AccuracyResults, Summary, summary_text
from accuracy_training_table import training_parts
from intervals import binomial_half_width
from markdown_tables import markdown_table, verdict
from tasks import TASKS

TARGET_FLOPS, TARGET_LOSS = 0.5, 1.0


def markdown_report(results: AccuracyResults, split: str) -> str:
    """All tables."""
    rows = "dev" if split == "dev" else "held-out train rows"
    parts: list[str] = []
    for task in results.tasks:
        accuracy, count = results.dense(task)
        half_width = 100 * binomial_half_width(accuracy / 100, count)
        parts += [
            f"## {TASKS[task].model}, {rows}",
            f"Dense: {accuracy:.2f} on {count:,} rows (± {half_width:.2f} for the choice of the rows). Below: accuracy"
            " after pruning, mean ± 95 % interval over the calibration samples, and the loss in points.",
            _budget_table(results, task),
        ]
    if len(results.tasks) > 1:
        parts += ["## Mean loss over the tasks, in points", _budget_table(results, None), _target_line(results)]
    parts += mode_parts(results, rows)
    parts += training_parts(results, rows)
    for flops in ABLATION_FLOPS:
        parts += _ablation_parts(results, flops)
    return "\n\n".join(part for part in parts if part)


def _budget_table(results: AccuracyResults, task: str | None) -> str:
    rows = []
    for flops in FLOPS:
        found = [results.summary(task, flops, recovery, FULL) for recovery in results.recoveries]
        if any(found):
            rows.append([flops, *map(summary_text, found)])
    return markdown_table(["FLOPs", *results.recoveries], rows) if rows else ""


def _ablation_parts(results: AccuracyResults, flops: float) -> list[str]:
    parts = []
    for scope in results.scopes:
        rows = []
        for name, ablation in ABLATIONS.items():
            found = [results.summary(scope, flops, recovery, name) for recovery in results.recoveries]
            if any(found) and not ablation.of_mode:
                rows.append([ablation.title, *(_loss_text(summary) for summary in found)])
        if len(rows) > 1:
            where = "mean over the tasks" if scope is None else TASKS[scope].title
            parts += [
                f"## Ablations at {flops} of the FLOPs: loss in points, {where}",
                markdown_table(["pipeline", *results.recoveries], rows),
            ]
    return parts


def _target_line(results: AccuracyResults) -> str:
    summary = results.summary(None, TARGET_FLOPS, "weights", FULL)
    if summary is None:
        return ""
    return (
        f"Target: at most {TARGET_LOSS} points at {TARGET_FLOPS} of the FLOPs with Fisher scores and the refit of"
        f" weights. Measured: {summary.loss}. Reached: {verdict(summary.loss.mean <= TARGET_LOSS)}."
    )


def _loss_text(summary: Summary | None) -> str:
    return "–" if summary is None else str(summary.loss)
