"""Budgets that count heads or layers, instead of what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from .config import PruningConfig
from .errors import PruningError
from .setting_checks import check_flags, check_fraction, is_number


@dataclass
class HeadBudgetConfig(PruningConfig):
    """A configuration that takes a number of heads as its budget, alone or among others."""

    heads: float | None = field(
        default=None,
        metadata={"help": "Fraction of the heads to keep, rounded down; of KV groups where heads share keys."},
    )
    allow_empty_layers: bool = field(
        default=False,
        metadata={"help": "With heads: let attention lose every head. By default one stays in each, whatever heads."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads is not None:
            check_fraction(self, "heads")
        check_flags(self, "allow_empty_layers")
        if self.allow_empty_layers and self.heads is None:
            raise PruningError("allow_empty_layers=True is about heads: use it with heads=.")


@dataclass
class LayerBudgetConfig(PruningConfig):
    """A configuration that takes a number of layers as its budget, alone or among others."""

    layers: float | None = field(
        default=None,
        metadata={
            "help": "Layers to keep of each list of layers: up to 1.0 a fraction, rounded down; above 1 (as an integer"
            " from 1 on) a number.",
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is None:
            return
        if isinstance(self.layers, float) and self.layers > 1 and self.layers.is_integer():
            self.layers = int(self.layers)  # the command line has only one kind of number
        if not is_number(self.layers) or self.layers <= 0 or (isinstance(self.layers, float) and self.layers > 1):
            raise PruningError(
                f"layers={self.layers!r} must be a fraction in (0, 1.0] or a whole number of layers to keep."
            )


def check_given(config: PruningConfig, name: str) -> None:
    """Raises a PruningError where a budget that a strategy cannot do without is missing."""
    if getattr(config, name) is None:
        raise PruningError(f"{type(config).__name__} needs {name}=, what to keep.")
