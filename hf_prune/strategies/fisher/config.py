"""Settings of fast post-training pruning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...config import StructuredPruningConfig, check_counts
from ...errors import PruningError

_CHOICES = {
    "importance": ("fisher", "gradient", "magnitude"),
    "recovery": ("weights", "mask_tuning", "none"),
    "solver": ("direct", "lsmr"),
}


@dataclass
class FisherPruningConfig(StructuredPruningConfig):
    """Fast post-training pruning of heads and filters (Kwon et al. 2022): no training, minutes, one budget.

    The paper's own pipeline is `recovery="mask_tuning"`; the default refits the output projections instead, which
    loses less accuracy.
    """

    strategy: ClassVar[str] = "fisher"

    importance: str = field(
        default="fisher",
        metadata={"help": "Score of a unit: 'fisher' (squared gradients), 'gradient' or 'magnitude'."},
    )
    rearrange: bool | None = field(
        default=None,
        metadata={
            "help": "Reselect units within each block with the full Fisher matrix. Default: unless recovery is"
            " 'weights', which gains more from the units that matter by themselves."
        },
    )
    recovery: str = field(
        default="weights",
        metadata={"help": "Repair without training: 'weights' (refit), 'mask_tuning' (the paper's) or 'none'."},
    )
    solver: str = field(
        default="direct", metadata={"help": "Mask tuning's solver: 'direct' or 'lsmr' (SciPy; CuPy on CUDA)."}
    )
    damp: float = field(default=1.0, metadata={"help": "Damping of mask tuning."})
    refit_examples: int | None = field(
        default=1024,
        metadata={
            "help": "Calibration examples used for the repair, None for all. Their hidden states are kept in memory"
            " four times."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise PruningError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(allowed)}.")
        if self.rearrange not in (None, True, False):
            raise PruningError(f"rearrange={self.rearrange!r} must be True, False or None.")
        if isinstance(self.damp, bool) or not isinstance(self.damp, (int, float)) or not self.damp >= 0:
            raise PruningError(f"damp={self.damp!r} must be a number of at least 0.")
        check_counts(self, "refit_examples")

    @property
    def rearranges(self) -> bool:
        """Whether units are reselected within each block."""
        return self.recovery != "weights" if self.rearrange is None else self.rearrange
