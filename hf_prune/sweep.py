"""`sweep`: many budgets from one set of statistics, the whole trade-off between size and quality."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from .api import check_one_shot
from .config import PruningConfig
from .errors import PruningError
from .pruning_run import Evaluation, PruningRun
from .recovery import Repair
from .report.curve import TradeOffCurve
from .report.curve_levels import curve_of
from .report.report import PruningReport
from .report.result import PruningResult
from .report.sweep_tables import pareto_front, sweep_rows
from .report.tables import markdown_table
from .strategies.base import Cut
from .surgery.metadata_writing import configs_of, write_metrics

COSTS = ("flops", "params", "latency")


@dataclass(frozen=True)
class SweepPoint:
    """One size of the model.

    Attributes:
        budget: what was to be kept.
        config: the configuration with that budget.
        cut: what stays, with the repaired weights, on the CPU.
        report: costs and metrics before and after.
    """

    budget: float
    config: PruningConfig
    cut: Cut
    report: PruningReport


@dataclass(frozen=True)
class Sweep:
    """One model under several budgets. The model itself is dense, and has to stay as it is for the points to be made.

    Every point keeps its plan and its repairs: the output projections of the units that stay, which are fewer than half
    of the attention and FFN parameters that are left.

    Attributes:
        keyword: what the budgets count.
        points: from the largest budget to the smallest.
        stages: seconds spent in each stage, of all points together.
        run: the model, and the data that a cut is checked on.
        metric: what points are compared by where nothing else is said; None for the only one beside the loss, or the
            loss.
    """

    keyword: str
    points: tuple[SweepPoint, ...]
    stages: Mapping[str, float]
    run: PruningRun = field(repr=False)
    metric: str | None = None

    @cached_property
    def curve(self) -> TradeOffCurve:
        """The dense model and all points, as a trade-off curve: level 1 is point 0."""
        settings = {**self.points[0].config.to_dict(), self.keyword: None}
        return curve_of(settings, self._reports(), self._budgets())

    def pareto(self, metric: str | None = None, cost: str = "flops") -> list[int]:
        """The places of the points that no other beats in cost and metric.

        Args:
            metric: of the evaluation; by default `self.metric`.
            cost: "flops", "params" (of attention and FFN) or "latency", where it was measured.

        Raises:
            PruningError: no such metric or cost.
        """
        costs = self._costs(cost)
        self._check_measured()
        name, greater_is_better = self.curve.metric(metric or self.metric)
        sign = 1 if greater_is_better else -1
        return pareto_front(costs, [sign * value for value in self.curve.values(name)[1:]])

    def _check_measured(self) -> None:
        if not self.run.dense_metrics:
            raise PruningError("No metric was measured: give sweep eval_dataset= (and compute_metrics=).")

    def rows(self, metric: str | None = None) -> tuple[list[str], list[list[str]]]:
        """The header and the rows of a table, the dense model first.

        Args:
            metric: by which it is said what is on the front of FLOPs and quality; by default `self.metric`. Where that
                is None and there are several, or none at all, nothing is said of the front.
        """
        metric = metric or self.metric
        measured = self.run.dense_metrics
        undecided = metric is None and sum(not name.endswith("loss") for name in measured) > 1
        front = None if undecided or not measured else self.pareto(metric)
        return sweep_rows(self.keyword, self._budgets(), self._reports(), front)

    def to_markdown(self, metric: str | None = None) -> str:
        """The table as Markdown, see `rows`."""
        return markdown_table(*self.rows(metric))

    def plot(self, metric: str | None = None, path: str | Path | None = None) -> Any:
        """Draws the metric over the share of the parameters removed, see `plot_curves`.

        Raises:
            PruningError: nothing was measured, or no such metric.
        """
        self._check_measured()
        return self.curve.plot(metric or self.metric, path)

    def result(self, index: int) -> PruningResult:
        """A point as `prune_model` would return it, with a copy of the model.

        Args:
            index: its place in `points`.
        """
        point = self.points[index]
        with self._cut_for_now(point):
            model = copy.deepcopy(self.run.model)
        return self._as_result(point, model)

    def save_pretrained(self, index: int, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes a point as `PruningResult.save_pretrained` does.

        Args:
            index: its place in `points`.
            save_directory: where to.
            **kwargs: for `PruningResult.save_pretrained`.
        """
        point = self.points[index]
        with self._cut_for_now(point):
            self._as_result(point, self.run.model).save_pretrained(save_directory, **kwargs)

    @contextmanager
    def _cut_for_now(self, point: SweepPoint) -> Iterator[None]:
        with self.run.applied(point.config, point.cut, timed=False) as made:
            write_metrics(configs_of(self.run.model, self.run.anatomy), point.report.metrics)
            yield
        made.log.roll_back()

    def _as_result(self, point: SweepPoint, model: PreTrainedModel) -> PruningResult:
        return PruningResult(model, point.cut.plan, point.report, point.config, self.run.evaluation.tokenizer)

    def _reports(self) -> list[PruningReport]:
        return [point.report for point in self.points]

    def _budgets(self) -> list[float]:
        return [point.budget for point in self.points]

    def _costs(self, name: str) -> list[float]:
        if name not in COSTS:
            raise PruningError(f"cost={name!r} is unknown; use one of {', '.join(COSTS)}.")
        if name != "latency":
            return [float(getattr(level, name)) for level in self.curve.levels[1:]]
        found = [report.pruned.latency for report in self._reports()]
        times = [time for time in found if time is not None]
        if len(times) < len(found):
            raise PruningError("cost='latency' was not measured: call sweep with latency=True.")
        return times


def sweep(
    model: PreTrainedModel,
    config: PruningConfig,
    calibration_data: Any = None,
    budgets: Sequence[float] = (0.7, 0.5, 0.3),
    *,
    eval_dataset: Any = None,
    compute_metrics: Callable[[Any], dict[str, float]] | None = None,
    data_collator: Any = None,
    accelerator: Accelerator | None = None,
    latency: bool = False,
    metric: str | None = None,
    resume_dir: str | os.PathLike[str] | None = None,
) -> Sweep:
    """Prunes a model to several budgets, measures each, and gives the model back as it was.

    What a strategy measures on the dense model (its scores) is measured once; the choice of units, the repair and the
    evaluation are done for every budget. A point is what `prune_model` would have made with its budget.

    Args:
        model: as for `prune_model`.
        config: the strategy, with any value for the budget that is to be varied: `FisherPruningConfig(flops=0.5)`.
        calibration_data: as for `prune_model`.
        budgets: values of that budget.
        eval_dataset: as for `prune_model`; without it costs are all that is known of a point.
        compute_metrics: as for `Trainer`.
        data_collator: as for `Trainer`.
        accelerator: as for `prune_model`.
        latency: measure the forward time of every point beside the dense model's.
        metric: what points are compared by; by default the only one beside the loss, or the loss.
        resume_dir: as for `prune_model`.

    Returns:
        All points.

    Raises:
        PruningError: a bad request (its subclasses: an unsupported model, a budget out of reach, which is found out
            before any other budget is worked on). The model is as it was.
    """
    keyword, configs = _varied(config, budgets)
    evaluation = Evaluation(eval_dataset, compute_metrics, data_collator)
    run = PruningRun.of(model, config, calibration_data, evaluation, accelerator, resume_dir)
    metric = _known(metric, run.dense_metrics)
    decide = run.decider(config)
    points = []
    # The smallest first: if any of them is out of reach it is this one.
    for budget in sorted(configs):
        cut, report = run.tried(configs[budget], decide(configs[budget]), timed=latency)
        points.append(SweepPoint(budget, configs[budget], _on_cpu(cut), report))
    run.data.steps.remove()
    return Sweep(keyword, tuple(reversed(points)), dict(run.clock.seconds), run, metric)


def _varied(config: Any, budgets: Sequence[float]) -> tuple[str, dict[float, PruningConfig]]:
    """The budget's keyword, and the configuration for every value of it.

    Raises:
        PruningError: there is nothing to vary, or a value that the budget does not take.
    """
    check_one_shot(config)
    given = [name for name in getattr(config, "BUDGETS", ()) if getattr(config, name) is not None]
    if config.prunes_weights or not given or given[0] == "max_metric_drop":
        asked = ", ".join(f"{name}={getattr(config, name)}" for name in given)
        raise PruningError(
            f"sweep varies a budget of heads, filters or layers, and {type(config).__name__}({asked}) has none: give"
            " flops= for instance. For single weights, and for max_metric_drop=, call prune_model."
        )
    if not budgets or len(set(budgets)) < len(budgets):
        raise PruningError(f"budgets={list(budgets)} must be one or more different values of {given[0]}.")
    return given[0], {budget: replace(config, **{given[0]: budget}) for budget in budgets}


def _known(metric: str | None, measured: Mapping[str, float]) -> str | None:
    """The metric's name as the evaluation has it.

    Raises:
        PruningError: the evaluation of the dense model has no such metric.
    """
    name = metric and metric.removeprefix("eval_")
    if name is not None and name not in measured:
        raise PruningError(
            f"metric={metric!r} is none of what the evaluation gives ({', '.join(measured) or 'nothing'}): name one of"
            " these, or pass eval_dataset= and a compute_metrics= that returns it."
        )
    return name


def _on_cpu(cut: Cut) -> Cut:
    repairs = {
        key: Repair(repair.weight.cpu(), None if repair.bias is None else repair.bias.cpu())
        for key, repair in cut.repairs.items()
    }
    return replace(cut, repairs=repairs)
