"""How a training is divided: fine-tuning first, then iterations of gated training and retraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ...errors import PruningError

Phase = Literal["open", "measured", "gated"]

_LEAST = 3  # steps of an iteration: gates, retraining, and ε for the next one


class Place(NamedTuple):
    """Where in a training one is.

    Attributes:
        iteration: 0 before the first.
        phase: "gated" (gates act, and how often they close is counted), "open" (retraining) or "measured" (retraining
            in which ε is estimated for the next iteration).
    """

    iteration: int
    phase: Phase


@dataclass(frozen=True)
class Iterations:
    """The stretches of a training.

    Attributes:
        steps: optimizer steps of the whole training.
        count: iterations.
        gated: share of an iteration with gates, at its beginning; one step at least, and not all of them.
        measured: share of an iteration over which ε is estimated, at its end; one step at least, and none with gates.

    Raises:
        PruningError: the training is too short for so many.
    """

    steps: int
    count: int
    gated: float
    measured: float

    def __post_init__(self) -> None:
        least = _LEAST * (self.count + 1)
        if self.steps < least:
            raise PruningError(
                f"iterations={self.count} take at least {least} optimizer steps, {_LEAST} each and {_LEAST} of"
                f" fine-tuning before them, but the training has {self.steps}. Train longer, or ask for fewer."
            )

    def start(self, iteration: int) -> int:
        """Steps made before an iteration begins; that of `count + 1` is the training's end."""
        return iteration * self.steps // (self.count + 1)

    def gated_until(self, iteration: int) -> int:
        """Steps made when an iteration's gates open again."""
        return min(self.start(iteration) + self._part(iteration, self.gated), self.start(iteration + 1) - 1)

    def place(self, step: int) -> Place:
        """Where the forward pass after `step` optimizer steps is; at the training's end that of the last one."""
        iteration = next(i for i in range(self.count, -1, -1) if self.start(i) <= step)
        if iteration and step < self.gated_until(iteration):
            return Place(iteration, "gated")
        if iteration < self.count and step >= self.start(iteration + 1) - self._part(iteration, self.measured):
            return Place(iteration, "measured")
        return Place(iteration, "open")

    def ended(self, step: int) -> int:
        """How many iterations are behind after `step` optimizer steps."""
        return sum(self.start(iteration + 1) <= step for iteration in range(1, self.count + 1))

    def _part(self, iteration: int, share: float) -> int:
        return max(1, round(share * (self.start(iteration + 1) - self.start(iteration))))
