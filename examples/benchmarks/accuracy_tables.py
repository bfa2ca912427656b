"""The accuracy table's numbers: means over calibration seeds, per task and over the tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accuracy_cells import ABLATIONS, FLOPS, FULL, RECOVERIES, Cell
from intervals import Estimate, binomial_half_width
from markdown_tables import markdown_table, verdict
from tasks import TASKS

TARGET_FLOPS, TARGET_LOSS = 0.5, 1.0

Measured = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """One setting over the seeds.

    Attributes:
        task: the task's name, or None for the mean over all tasks.
        accuracy: in percent.
        loss: the dense model's accuracy minus this one's, in points.
        seeds: how many samples.
    """

    task: str | None
    flops: float
    recovery: str
    ablation: str
    accuracy: Estimate
    loss: Estimate
    seeds: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return asdict(self)


class AccuracyResults:
    """Measured cells, summed up.

    Args:
        measured: what was measured, by cell.
    """

    def __init__(self, measured: Sequence[tuple[Cell, Measured]]) -> None:
        self._found = {
            (cell.task, cell.flops, cell.recovery, cell.ablation, cell.seed): values for cell, values in measured
        }
        self.tasks = [task for task in TASKS if any(key[0] == task for key in self._found)]
        self.recoveries = [recovery for recovery in RECOVERIES if any(key[2] == recovery for key in self._found)]
        self._seeds = sorted({key[4] for key in self._found})

    def summary(self, task: str | None, flops: float, recovery: str, ablation: str) -> Summary | None:
        """One setting; None where nothing, or for the mean over the tasks not every task, was measured."""
        tasks = [task] if task else self.tasks
        pairs = [self._of_seed(tasks, flops, recovery, ablation, seed) for seed in self._seeds]
        complete = [pair for pair in pairs if pair is not None]
        if not complete:
            return None
        accuracies, losses = zip(*complete, strict=True)
        return Summary(
            task, flops, recovery, ablation, Estimate.of(accuracies), Estimate.of(losses), seeds=len(complete)
        )

    def summaries(self) -> Iterator[Summary]:
        """Every setting of every task and of their mean."""
        scopes: list[str | None] = [*self.tasks, *([None] if len(self.tasks) > 1 else [])]
        for scope in scopes:
            for ablation in ABLATIONS:
                for flops in FLOPS:
                    for recovery in self.recoveries:
                        found = self.summary(scope, flops, recovery, ablation)
                        if found is not None:
                            yield found

    def dense(self, task: str) -> tuple[float, int]:
        """Accuracy of the dense model in percent, and the number of rows it was measured on."""
        values = next(values for key, values in self._found.items() if key[0] == task)
        return 100 * values["dense_correct"] / values["rows"], values["rows"]

    def _of_seed(
        self, tasks: Sequence[str], flops: float, recovery: str, ablation: str, seed: int
    ) -> tuple[float, float] | None:
        """Mean accuracy and loss over some tasks with the calibration samples of one seed."""
        cells = [self._found.get((task, flops, recovery, ablation, seed)) for task in tasks]
        found = [cell for cell in cells if cell is not None]
        if len(found) < len(cells):
            return None
        accuracy = sum(100 * cell["correct"] / cell["rows"] for cell in found) / len(found)
        loss = sum(100 * (cell["dense_correct"] - cell["correct"]) / cell["rows"] for cell in found) / len(found)
        return accuracy, loss


def markdown_report(results: AccuracyResults, split: str) -> str:
    """All tables."""
    rows = "dev" if split == "dev" else "held-out train rows"
    parts = []
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
    for flops in FLOPS:
        parts += _ablation_parts(results, flops)
    return "\n\n".join(part for part in parts if part)


def _budget_table(results: AccuracyResults, task: str | None) -> str:
    rows = []
    for flops in FLOPS:
        found = [results.summary(task, flops, recovery, FULL) for recovery in results.recoveries]
        if any(found):
            rows.append([flops, *(_text(summary) for summary in found)])
    return markdown_table(["FLOPs", *results.recoveries], rows)


def _ablation_parts(results: AccuracyResults, flops: float) -> list[str]:
    parts = []
    for scope in [None, *results.tasks] if len(results.tasks) > 1 else results.tasks:
        rows = []
        for name, ablation in ABLATIONS.items():
            found = [results.summary(scope, flops, recovery, name) for recovery in results.recoveries]
            if any(found):
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
        f"Target: at most {TARGET_LOSS} points at {TARGET_FLOPS} of the FLOPs with the default settings. Measured:"
        f" {summary.loss}. Reached: {verdict(summary.loss.mean <= TARGET_LOSS)}."
    )


def _text(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    return f"{summary.accuracy} ({-summary.loss.mean:+.2f})" if summary.task else str(summary.loss)


def _loss_text(summary: Summary | None) -> str:
    return "–" if summary is None else str(summary.loss)
