"""The settings of Static Model Pruning, which its strategy and its PEFT method share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...errors import PruningError
from ...weight_config import is_number

MASKINGS = ("local", "score", "global")
SCHEDULES = {"cubic": 3, "linear": 1}
_LOW_SPARSITY = 0.3


@dataclass
class StaticMaskSettings:
    """What a static mask is and how it learns (Jiang et al. 2023)."""

    sparsity: float | None = field(
        default=None, metadata={"help": "Fraction of single weights to remove, at least 0 and below 1."}
    )
    masking: str = field(
        default="local",
        metadata={
            "help": "Where weights compete: 'local' (every matrix loses the same fraction), 'score' (a kind of matrix"
            " loses it over all layers, which share it in proportion to their mean scores) or 'global'.",
        },
    )
    temperature: float | None = field(
        default=None,
        metadata={
            "help": "masking='score': the larger, the more alike the layers. Default: 4 up to a sparsity of 0.3, 1"
            " above, as the authors have it.",
        },
    )
    schedule: str = field(
        default="cubic", metadata={"help": "How the sparsity rises from begin to end: 'cubic' or 'linear'."}
    )
    begin: float = field(
        default=0.0,
        metadata={
            "help": "When pruning begins: up to 1 it is a fraction of the training, above 1 a number of steps.",
        },
    )
    end: float = field(
        default=0.6,
        metadata={"help": "When what was asked for is reached, written like begin; if equal, at one go."},
    )
    frequency: int = field(default=1, metadata={"help": "Optimizer steps between two choices of what is removed."})
    regularization: float = field(
        default=400.0,
        metadata={"help": "Factor of the scores' mean sigmoid in the loss; rises from 0 over the training."},
    )
    score_learning_rate: float = field(default=2e-2, metadata={"help": "Of the scores; falls linearly to zero."})

    @property
    def score_temperature(self) -> float:
        """The temperature of `masking="score"`."""
        if self.temperature is not None:
            return self.temperature
        return 4.0 if (self.sparsity or 0.0) <= _LOW_SPARSITY else 1.0

    @property
    def power(self) -> int:
        """The power of the schedule's curve."""
        return SCHEDULES[self.schedule]


def check_static_settings(settings: Any) -> None:
    """Raises a PruningError where a setting of its own is out of range; when pruning happens is checked elsewhere."""
    value = settings.sparsity
    if value is None or not is_number(value) or not 0 <= value < 1:
        raise PruningError(f"sparsity={value!r} must lie in [0, 1): it is the fraction of the weights to remove.")
    for name, allowed in (("masking", MASKINGS), ("schedule", tuple(SCHEDULES))):
        if getattr(settings, name) not in allowed:
            raise PruningError(f"{name}={getattr(settings, name)!r} is unknown; use one of {', '.join(allowed)}.")
    for name in ("regularization", "score_learning_rate"):
        if not is_number(getattr(settings, name)) or getattr(settings, name) < 0:
            raise PruningError(f"{name}={getattr(settings, name)!r} must be a number of at least 0.")
    value = settings.temperature
    if value is not None and not (is_number(value) and value > 0):
        raise PruningError(f"temperature={value!r} must be a number above 0.")
