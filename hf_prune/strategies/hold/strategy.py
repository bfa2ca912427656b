"""Training with zeros held."""

from __future__ import annotations

from typing import Any

from ...config import PruningConfig
from ...errors import PruningError
from ...gates import WeightMasks
from ..mask_pruner import MaskPruner, chosen


class ZeroHolder(MaskPruner):
    """Keeps the zeros that a model has.

    Raises:
        PruningError: it has none.
    """

    def __init__(self, model: Any, config: PruningConfig, steps: int) -> None:
        matrices = chosen(model, config)
        self._zeros = [matrix.parameter.detach() != 0 for matrix in matrices]
        if all(bool(mask.all()) for mask in self._zeros):
            raise PruningError(
                f"{type(model).__name__} has no zeros to hold in {len(matrices)} matrices: it is not pruned, or"
                " target_modules names the wrong ones."
            )
        super().__init__(model, config, steps, WeightMasks(matrices))

    def begin(self) -> None:
        """Masks what is zero."""
        self.masks.set(self._zeros)

    @property
    def reached(self) -> bool:
        """From the beginning."""
        return True
