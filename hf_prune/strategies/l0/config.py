"""Settings of L0 regularisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...config import StructuredPruningConfig
from ...count_budgets import HeadBudgetConfig
from ...errors import PruningError
from ...gates.hard_concrete import TEMPERATURE
from ...setting_checks import check_not_negative, check_unused, is_number
from ...weight_config import TimedPruningConfig


@dataclass
class L0PruningConfig(TimedPruningConfig, StructuredPruningConfig, HeadBudgetConfig):
    """Learns, while a model is trained, gates on its heads and filters, and a penalty closes as many as must go.

    Gates are hard-concrete (Louizos et al. 2018; on heads Voita et al. 2019). From `begin` to `end` they are drawn anew
    in every pass and learn beside the weights; then those that are most likely closed go for good, so that the budget
    holds exactly, what the others multiply with becomes part of the weights, and training goes on without gates. With
    `heads` only heads have gates.
    """

    strategy: ClassVar[str] = "l0"
    needs_data: ClassVar[bool] = False
    at_once: ClassVar[bool] = False
    BUDGETS: ClassVar[tuple[str, ...]] = (*StructuredPruningConfig.BUDGETS, "heads")
    IN_TRAINING: ClassVar[tuple[str, ...]] = (
        *TimedPruningConfig.IN_TRAINING,
        "target_warmup",
        "regularization",
        "gate_learning_rate",
        "gate_temperature",
    )

    end: float = field(
        default=0.5, metadata={"help": "When gates have learnt and what is closed goes for good, written like begin."}
    )
    target_warmup: float = field(
        default=0.5,
        metadata={"help": "Share of the time from begin to end in which the penalty's target falls to the budget."},
    )
    regularization: float | None = field(
        default=None,
        metadata={
            "help": "Factor of the expected cost (a fraction of the dense model's) in the loss; the penalty then has no"
            " target. Default: whatever the budget takes, by a Lagrangian (Wang et al. 2020).",
        },
    )
    gate_learning_rate: float = field(default=0.1, metadata={"help": "Of the gates and of the Lagrangian."})
    gate_temperature: float = field(
        default=TEMPERATURE, metadata={"help": "Of the hard-concrete distribution, above 0; Voita et al. use 0.33."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "gate_learning_rate", "gate_temperature", "target_warmup")
        if not self.gate_temperature:
            raise PruningError("gate_temperature=0 must be above 0.")
        if self.target_warmup > 1:
            raise PruningError(f"target_warmup={self.target_warmup!r} must lie in [0, 1].")
        if self.regularization is not None and (not is_number(self.regularization) or self.regularization < 0):
            raise PruningError(f"regularization={self.regularization!r} must be a number of at least 0, or None.")
        if self.regularization is not None:
            check_unused(self, "with regularization=, whose penalty has no target", "target_warmup")
