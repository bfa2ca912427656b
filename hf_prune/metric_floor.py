"""The smallest model that keeps a metric: one set of scores, and a bisection over the budget of FLOPs.

A metric does not fall steadily with the size, so a smaller model than the one found may keep it, too. What is returned
was measured, and held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats

from .config import PruningConfig
from .errors import InfeasibleBudgetError, PruningError
from .metric_budget import MetricBudgetConfig
from .pruning_run import Evaluation, PruningRun
from .report.curve import TradeOffCurve, chosen_metric
from .report.curve_levels import curve_of
from .report.report import PruningReport
from .strategies.base import Cut

# How near the smallest FLOPs that held come to those below them that did not: at most seven sizes are tried.
RESOLUTION = 1 / 128
_ROUNDING = 1e-9  # of differences of metrics


def check_evaluates(config: PruningConfig, evaluation: Evaluation, *, retrained: bool) -> None:
    """Refuses, before any work, what a floor for a metric cannot go with.

    Raises:
        PruningError: a metric is to decide and there is no evaluation data, or the metric would change afterwards.
    """
    drop = getattr(config, "max_metric_drop", None)
    if drop is None:
        return
    if evaluation.dataset is None:
        raise PruningError(
            f"max_metric_drop={drop} chooses a size by a metric, but there is nothing to measure it on: pass"
            " eval_dataset= and compute_metrics= (on the command line --validation_file)."
        )
    if retrained:
        raise PruningError(
            f"max_metric_drop={drop} chooses a size by what the metric is before retraining, and retrain= would change"
            " it: train the pruned model afterwards, or give flops= instead."
        )


def smallest_holding(run: PruningRun, config: MetricBudgetConfig) -> tuple[Cut, TradeOffCurve]:
    """The cut with the fewest FLOPs among those that were tried and kept the metric, and all that were tried.

    Args:
        run: the dense model, which has been evaluated; it is as it was afterwards.
        config: with `max_metric_drop`.

    Returns:
        The cut, whose notes say what was measured on how many examples; and the dense model with all sizes that were
        tried, from the largest to the smallest.

    Raises:
        PruningError: the evaluation has no such metric, or the dense model's is not a number.
        InfeasibleBudgetError: no smaller model that was tried keeps the metric.
    """
    floor = _Floor.of(run.dense_metrics, config)
    decide = run.decider(config)
    reports: dict[float, PruningReport] = {}
    held: list[Cut] = []

    def holds(flops: float) -> bool:
        budget = config.with_flops(flops)
        cut, reports[flops] = run.tried(budget, decide(budget))
        if not run.data.broadcast(floor.drop(reports[flops]) <= floor.most + _ROUNDING):
            return False
        held[:] = [cut]  # repairs are large, and the next that holds is smaller
        return True

    smallest = bisect(holds, RESOLUTION)
    if smallest is None:
        raise floor.none_holds(reports)
    budgets = sorted(reports, reverse=True)
    curve = curve_of(config.to_dict(), [reports[flops] for flops in budgets], budgets)
    notes = floor.notes(reports[smallest], smallest, len(reports), run.evaluation.dataset)
    return replace(held[0], notes=(*held[0].notes, *notes)), curve


def bisect(holds: Callable[[float], bool], resolution: float) -> float | None:
    """The smallest fraction found to hold between 0 and 1, where 1 holds; None if no other does.

    Halves the gap between a fraction that holds and one below it that does not, until it is at most `resolution`. If
    whatever is above a fraction that holds holds, too, the result is at most `resolution` above the smallest of all.

    Args:
        holds: tries one fraction; where it raises an InfeasibleBudgetError nothing up to its `smallest` is tried again.
        resolution: of the fractions.
    """
    low, high = 0.0, 1.0
    while high - low > resolution:
        middle = (low + high) / 2
        try:
            if holds(middle):
                high = middle
            else:
                low = middle
        except InfeasibleBudgetError as error:
            low = max(middle, error.smallest)
    return high if high < 1 else None


@dataclass(frozen=True)
class _Floor:
    """The metric that is to be kept.

    Attributes:
        metric: its name.
        greater_is_better: whether a drop is a loss of it, and not a gain.
        dense: the dense model's.
        most: the largest drop.
    """

    metric: str
    greater_is_better: bool
    dense: float
    most: float

    @classmethod
    def of(cls, metrics: Mapping[str, float], config: MetricBudgetConfig) -> _Floor:
        name, greater_is_better = chosen_metric(metrics, config.metric and config.metric.removeprefix("eval_"))
        if name not in metrics:
            raise PruningError(
                f"The evaluation gives no metric {name!r}, only {', '.join(metrics)}: name another one with metric=, or"
                " have compute_metrics= return it."
            )
        if math.isnan(metrics[name]):
            raise PruningError(f"The dense model's {name} is NaN: there is nothing to compare smaller models with.")
        assert config.max_metric_drop is not None
        return cls(name, greater_is_better, metrics[name], config.max_metric_drop)

    def drop(self, report: PruningReport) -> float:
        """How much worse than the dense model a pruned one is; infinite where its metric is not a number."""
        value = report.metrics["pruned"][self.metric]
        drop = self.dense - value if self.greater_is_better else value - self.dense
        return math.inf if math.isnan(drop) else drop

    def none_holds(self, reports: Mapping[float, PruningReport]) -> InfeasibleBudgetError:
        """What to say where every size that was tried lost more."""
        asked = f"max_metric_drop={self.most:g} is out of reach: the dense {self.metric} is {self.dense:.4f}, and"
        if not reports:
            return InfeasibleBudgetError(f"{asked} no smaller model can be made of it.", math.inf)
        best = min(reports, key=lambda flops: self.drop(reports[flops]))
        drop = self.drop(reports[best])
        return InfeasibleBudgetError(
            f"{asked} of {len(reports)} smaller ones the best loses {drop:.4f} (at flops={best:.4g}). Allow that much,"
            " calibrate on more examples, or train a pruned model (flops=) afterwards.",
            drop,
        )

    def notes(self, report: PruningReport, flops: float, tried: int, dataset: Any) -> list[str]:
        """What was found, and how sure that is."""
        value = report.metrics["pruned"][self.metric]
        found = (
            f"Of {tried} sizes tried, flops={flops:.4g} is the smallest whose {self.metric} is at most {self.most:g}"
            f" worse than the dense model's {self.dense:.4f}: {value:.4f}. It was chosen on the evaluation data, so"
            " expect a little less on other data."
        )
        interval = proportion_note(self.metric, value, dataset)
        return [found] if interval is None else [found, interval]


def proportion_note(metric: str, value: float, dataset: Any) -> str | None:
    """How sure an accuracy is, given how many examples it was measured on (95 %, Wilson's interval).

    None where that is not known: for other metrics, for data without a length, and for accuracies that are not a share
    of the examples, but of tokens for instance.
    """
    if "accuracy" not in metric or not isinstance(dataset, Sized) or not 0 <= value <= 1:
        return None
    count = len(dataset)
    right = round(value * count)
    if abs(value * count - right) > 1e-4:
        return None
    interval = stats.binomtest(right, count).proportion_ci(method="wilson")
    return (
        f"With {count:,} evaluation examples a point of {metric} is {count / 100:.3g} examples, and {value:.4f} has a"
        f" 95 % interval from {interval.low:.4f} to {interval.high:.4f}: smaller differences say little."
    )
