"""The budget that is a metric: as small a model as keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from .config import StructuredPruningConfig
from .setting_checks import check_not_negative, check_unused


@dataclass
class MetricBudgetConfig(StructuredPruningConfig):
    """A configuration that takes a metric's largest drop as its budget, instead of a cost."""

    BUDGETS: ClassVar[tuple[str, ...]] = (*StructuredPruningConfig.BUDGETS, "max_metric_drop")

    max_metric_drop: float | None = field(
        default=None,
        metadata={
            "help": "Take the smallest model whose metric on the evaluation data is at most this much worse than the"
            " dense one's; 0.01 is one point of accuracy."
        },
    )
    metric: str | None = field(
        default=None,
        metadata={
            "help": "The metric for max_metric_drop; less is better of a loss, of perplexity, and of what is named as"
            " an error (wer, cer, mse, mae, error_rate). Default: the only one beside the loss, or the loss."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_metric_drop is not None:
            check_not_negative(self, "max_metric_drop")
        else:
            check_unused(self, "without max_metric_drop=", "metric")

    def with_flops(self, fraction: float) -> Self:
        """The same with a budget of FLOPs instead of the metric's."""
        return replace(self, max_metric_drop=None, metric=None, flops=fraction)
