"""Training with zeros held."""

from __future__ import annotations

from typing import Any

from ...config import PruningConfig
from ...errors import PruningError
from ...gates import WeightMasks
from ...shards import count_true, shards_of
from ..mask_pruner import MaskPruner, chosen


class ZeroHolder(MaskPruner):
    """Keeps the zeros that a model has.

    Raises:
        PruningError: it has none.
    """

    takes_shards = True

    def __init__(self, model: Any, config: PruningConfig, steps: int) -> None:
        matrices = chosen(model, config)
        self._zeros = [matrix.values != 0 for matrix in matrices]
        shards = shards_of((matrix.name, matrix.parameter) for matrix in matrices)
        if not shards.add_up(count_true([~mask for mask in self._zeros]).sum()):
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
