"""The accuracy table's numbers: means over calibration seeds, per task and over the tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from accuracy_cells import ABLATIONS, FLOPS, RECOVERIES, Cell
from intervals import Estimate
from tasks import TASKS

Measured = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """One setting over the seeds.

    Attributes:
        task: the task's name, or None for the mean over all tasks.
        accuracy: in percent.
        loss: the dense model's accuracy minus this one's, in points.
        seeds: how many samples.
        seconds: of pruning, or of the recovery training that follows, on average; None where no cell says.
    """

    task: str | None
    flops: float
    recovery: str
    ablation: str
    accuracy: Estimate
    loss: Estimate
    seeds: int
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return asdict(self)

    def __str__(self) -> str:
        """Accuracy and loss of a task, or the loss over all."""
        return f"{self.accuracy} ({-self.loss.mean:+.2f})" if self.task else str(self.loss)


def summary_text(summary: Summary | None) -> str:
    """For a cell of a table."""
    return "–" if summary is None else str(summary)


def mean_seconds(summaries: Iterable[Summary | None]) -> str:
    """For a cell of a table: the mean over the settings of a row."""
    known = [summary.seconds for summary in summaries if summary is not None and summary.seconds is not None]
    return f"{fmean(known):.0f}" if known else "–"


def scope_title(scope: str | None, rows: str) -> str:
    """What a table is about: a task, on some rows, or all of them (None)."""
    return "mean loss over the tasks in points" if scope is None else f"{TASKS[scope].title}, {rows}"


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
        # Of tables and summaries: the mean over the tasks, which is None, and every task; a task alone has no mean.
        self.scopes: list[str | None] = [*([None] if len(self.tasks) > 1 else []), *self.tasks]

    def summary(
        self, task: str | None, flops: float, recovery: str, ablation: str, *, beside: str | None = None
    ) -> Summary | None:
        """One setting; None where nothing, or for the mean over the tasks not every task, was measured.

        Args:
            task, flops, recovery, ablation: see `Summary`.
            beside: another ablation, for the samples only that it was measured with, too.
        """
        tasks = [task] if task else self.tasks
        names = (ablation, beside or ablation)
        found = [[self._of_seed(tasks, flops, recovery, name, seed) for name in names] for seed in self._seeds]
        complete = [cells for cells, others in found if cells and others]
        if not complete:
            return None
        accuracy, loss = (Estimate.of([fmean(map(of, cells)) for cells in complete]) for of in (_accuracy, _loss))
        clock = "training_seconds" if ABLATIONS[ablation].trained else "seconds"
        times = [cell[clock] for cells in complete for cell in cells if clock in cell]
        seconds = fmean(times) if times else None
        return Summary(task, flops, recovery, ablation, accuracy, loss, len(complete), seconds)

    def accuracies(self, task: str, flops: float, recovery: str, ablation: str) -> list[float]:
        """Of one setting, in percent, for every calibration sample that was measured."""
        cells = [self._of_seed([task], flops, recovery, ablation, seed) for seed in self._seeds]
        return [_accuracy(cell) for found in cells for cell in found]

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

    def _of_seed(self, tasks: Sequence[str], flops: float, recovery: str, ablation: str, seed: int) -> list[Measured]:
        """The cells of some tasks with the calibration samples of one seed; none unless they are all there."""
        cells = [self._found.get((task, flops, recovery, ablation, seed)) for task in tasks]
        found = [cell for cell in cells if cell is not None]
        return found if len(found) == len(cells) else []


def _accuracy(cell: Measured) -> float:
    return 100 * cell["correct"] / cell["rows"]


def _loss(cell: Measured) -> float:
    return 100 * (cell["dense_correct"] - cell["correct"]) / cell["rows"]
