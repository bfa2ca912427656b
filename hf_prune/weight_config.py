"""What configurations share that prune step by step, and those that prune single weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from .config import PruningConfig, StructuredPruningConfig
from .errors import PruningError
from .setting_checks import check_choices, check_counts, check_not_negative, check_sparsity, check_unused

SCOPES = ("matrix", "global")
AFTERWARDS = ("keep_masked", "delete")


@dataclass
class TimedPruningConfig(PruningConfig):
    """When a strategy prunes that works while a model is trained; `prune_model` does it all at once."""

    IN_TRAINING: ClassVar[tuple[str, ...]] = ("begin", "end")

    begin: float = field(
        default=0.0,
        metadata={
            "help": "When pruning begins: up to 1 it is a fraction of the training, above 1 a number of steps.",
        },
    )
    end: float = field(
        default=0.5,
        metadata={
            "help": "When what was asked for is reached, written like begin; if equal, at one go.",
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "begin", "end")
        if (self.begin <= 1) == (self.end <= 1) and self.begin > self.end:
            raise PruningError(f"begin={self.begin} must not be above end={self.end}.")


@dataclass
class ScheduledPruningConfig(TimedPruningConfig):
    """What a strategy shares with others that chooses anew, step by step, what is removed."""

    IN_TRAINING: ClassVar[tuple[str, ...]] = (*TimedPruningConfig.IN_TRAINING, "frequency")

    frequency: int = field(default=10, metadata={"help": "Optimizer steps between two choices of what is removed."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "frequency")


@dataclass
class WeightPruningConfig(ScheduledPruningConfig):
    """Which single weights are removed, and what becomes of them."""

    IN_TRAINING: ClassVar[tuple[str, ...]] = (*ScheduledPruningConfig.IN_TRAINING, "initial_sparsity", "after")

    sparsity: float | None = field(
        default=None, metadata={"help": "Fraction of single weights to remove, at least 0 and below 1."}
    )
    initial_sparsity: float = field(default=0.0, metadata={"help": "Sparsity that the schedule begins with."})
    scope: str = field(
        default="matrix",
        metadata={"help": "Where weights compete: 'matrix' (each loses the same fraction) or 'global'."},
    )
    pattern: str | None = field(
        default=None,
        metadata={"help": "N:M sparsity, '2:4' for instance: of every M weights of a row next to each other N stay."},
    )
    after: str = field(
        default="keep_masked",
        metadata={
            "help": "What becomes of removed weights: 'keep_masked' (they stay zero) or 'delete' (set to zero once, and"
            " free to learn again: information deletion).",
        },
    )

    def __post_init__(self) -> None:
        if self.pattern is not None:
            self._take_pattern()
        super().__post_init__()
        if self.sparsity is not None:
            check_sparsity(self, "sparsity")
        check_sparsity(self, "initial_sparsity")
        check_choices(self, scope=SCOPES, after=AFTERWARDS)
        if self.pattern is not None and self.scope != "matrix":
            raise PruningError(f"pattern={self.pattern!r} fixes what every row keeps; scope must be 'matrix'.")
        if not self.prunes_weights:
            where = "of heads and filters, it is for single weights: use it with sparsity= or pattern=, or leave it out"
            check_unused(self, where, "initial_sparsity", "scope", "after")
        elif isinstance(self, StructuredPruningConfig):
            where = "of single weights, it is for heads and filters: use it with another budget, or leave it out"
            check_unused(self, where, "sequence_length", "latency_batch_size", "round_to", "uniform")
        if self.sparsity is not None and self.initial_sparsity > self.sparsity:
            raise PruningError(
                f"initial_sparsity={self.initial_sparsity} must not be above sparsity={self.sparsity}: the schedule"
                " goes from the first to the second and removes more and more."
            )

    def _take_pattern(self) -> None:
        """Checks the pattern and makes it the sparsity."""
        kept, group = self.pattern_sizes
        implied = 1 - kept / group
        if self.sparsity is not None and self.sparsity != implied:
            raise PruningError(f"pattern={self.pattern!r} is a sparsity of {implied}, but sparsity={self.sparsity}.")
        self.sparsity = implied

    @property
    def pattern_sizes(self) -> tuple[int, int]:
        """N and M of the pattern."""
        match = re.fullmatch(r"(\d+):(\d+)", self.pattern) if isinstance(self.pattern, str) else None
        kept, group = map(int, match.groups()) if match else (0, 0)
        if not 0 < kept <= group <= 64:
            raise PruningError(f"pattern={self.pattern!r} must read 'N:M' with 1 ≤ N ≤ M ≤ 64, '2:4' for instance.")
        return kept, group

    @property
    def prunes_weights(self) -> bool:
        """Whether single weights are removed; otherwise heads and filters are."""
        return self.sparsity is not None
