"""`hf-prune sweep`: a fine-tuned model and rows in, the trade-off between size and quality out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table

from ..report.terminal import sweep_table
from ..sweep import Sweep, sweep
from .arguments import SweepArguments
from .inputs import Request, load_inputs
from .run import check_output_folder

PICTURE = "pruning_curve.png"


@dataclass(frozen=True)
class SweepOutcome:
    """What came of a sweep.

    Attributes:
        sweep: all points.
        metric: what they are compared by; None without evaluation.
        folders: of the models that were saved, by budget.
    """

    sweep: Sweep
    metric: str | None
    folders: dict[float, Path]

    def table(self) -> Table:
        """All points, for a terminal."""
        report = self.sweep.points[0].report
        return sweep_table(f"{report.short_name}: {report.strategy_name} pruning", *self.sweep.rows(self.metric))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        front = self.sweep.pareto(self.metric) if self.metric is not None else None
        points = [
            {
                "budget": point.budget,
                "on_front": None if front is None else index in front,
                "folder": str(self.folders[point.budget]) if point.budget in self.folders else None,
                "report": point.report.to_dict(),
            }
            for index, point in enumerate(self.sweep.points)
        ]
        return {"keyword": self.sweep.keyword, "metric": self.metric, "points": points}


def run_sweep(request: Request[SweepArguments]) -> SweepOutcome:
    """Prunes a model to several budgets and writes the curve, its picture, and the models that are to be saved.

    The picture needs evaluation rows and matplotlib. Nothing but what `--resume` keeps is written before all budgets
    have been worked on.

    Raises:
        PruningError: a request that cannot be carried out.
    """
    arguments = request.arguments
    request.check()
    check_output_folder(arguments, request.model)
    model, rows = load_inputs(request)
    found = sweep(
        model,
        request.pruning,
        budgets=arguments.values,
        latency=arguments.measure_latency,
        metric=arguments.metric,
        resume_dir=arguments.resume_dir,
        **rows.for_pruning(),
    )
    metric = found.metric or min(found.run.dense_metrics, key=lambda name: name.endswith("loss"), default=None)
    found.curve.save(arguments.output_dir)
    if metric is not None and find_spec("matplotlib") is not None:
        found.plot(metric, arguments.output_dir / PICTURE)
    folders = {}
    for index, point in enumerate(found.points):
        if point.budget in arguments.saved:
            folders[point.budget] = arguments.output_dir / f"{found.keyword}-{point.budget:g}"
            found.save_pretrained(index, folders[point.budget], **rows.for_saving(request.data))
    return SweepOutcome(found, metric, folders)
