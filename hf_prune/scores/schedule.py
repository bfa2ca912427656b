"""How much is pruned when: the cubic schedule of gradual pruning (Zhu and Gupta 2017; Gordon et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass


def cubic_sparsity(step: float, start: float, end: float, initial: float, final: float, power: int = 3) -> float:
    """s(t) = final + (initial − final) · (1 − (t − start) / (end − start))³, and constant before and after.

    Args:
        step: t; steps, fractions of training or any other clock, as `start` and `end`.
        start, end: where it rises; where they are equal, it jumps there.
        initial, final: the values before and after.
        power: 3; 1 for a straight line.
    """
    if step >= end:
        return final
    if step <= start:
        return initial
    rest = 1 - (step - start) / (end - start)
    return final + (initial - final) * rest**power


@dataclass(frozen=True)
class PruningSchedule:
    """At which steps masks are made anew, and how sparse they are then.

    Attributes:
        start, end: steps; from `start` to `end` the value rises along the curve.
        every: steps between two updates; they go on after `end`, so that weights can still change places.
        initial, final: the values before and after.
        power: of the curve, 3 for the cubic one, 1 for a straight line.
    """

    start: int
    end: int
    every: int
    initial: float
    final: float
    power: int = 3

    def due(self, step: int) -> bool:
        """Whether masks are made anew after this many steps (0: before the first)."""
        return step >= self.start and ((step - self.start) % self.every == 0 or step == self.end)

    def value(self, step: int) -> float:
        """The value after this many steps."""
        return cubic_sparsity(step, self.start, self.end, self.initial, self.final, self.power)

    def reached(self, step: int) -> bool:
        """Whether the final value is in force after this many steps."""
        return step >= self.end

    def last_value(self, steps: int) -> float:
        """The value that is in force after training for so many steps."""
        if steps >= self.end:
            return self.final
        if steps < self.start:
            return self.initial
        return self.value(steps - (steps - self.start) % self.every)
