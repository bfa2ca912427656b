"""What can go wrong, as exceptions a caller can tell apart."""

from __future__ import annotations


class PruningError(ValueError):
    """A request that cannot be carried out; the message names the value, what is allowed and the way out."""


class UnsupportedModelError(PruningError):
    """The model's architecture is not understood, so nothing in it is touched."""


class InfeasibleBudgetError(PruningError):
    """The budget lies below what the model can be pruned to.

    Attributes:
        smallest: the smallest reachable value, in the unit of the budget that was asked for.
    """

    def __init__(self, message: str, smallest: float) -> None:
        super().__init__(message)
        self.smallest = smallest
