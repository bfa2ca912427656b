"""Settings of training a pruned model with its zeros held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...config import PruningConfig


@dataclass
class HoldPruningConfig(PruningConfig):
    """Prunes nothing more: weights that are zero when training begins are zero when it ends.

    For fine-tuning a model whose single weights have been pruned, by whatever tool. `PruningCallback()` without a
    configuration does this with what a checkpoint of this library says.
    """

    strategy: ClassVar[str] = "hold"
    needs_data: ClassVar[bool] = False
    at_once: ClassVar[bool] = False

    @property
    def prunes_weights(self) -> bool:
        """Always: zeros are single weights."""
        return True
