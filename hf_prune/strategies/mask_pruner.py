"""What strategies share that keep masks on single weights while a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..anatomy import WeightMatrix, choose_matrices
from ..config import PruningConfig
from ..gates import MatrixMasks
from ..report.result import PruningResult
from ..report.weight_result import weight_result
from ..shards import put_shards_back
from .training import TrainingPruner


class MaskPruner(TrainingPruner):
    """Masks on single weights, which stay zero from step to step.

    Attributes:
        masks: what is on the model.
    """

    def __init__(self, model: Any, config: Any, steps: int, masks: MatrixMasks) -> None:
        super().__init__(model, config, steps)
        self.masks = masks

    def after_step(self) -> None:
        """Keeps removed weights at zero."""
        self.masks.apply()

    def logs(self) -> dict[str, float]:
        """The fraction of the matrices' weights that is removed."""
        return {"sparsity": self.masks.sparsity}

    def state(self) -> dict[str, torch.Tensor]:
        """The masks' bits and the removed weights; of a sharded model on the first process, and all must ask for it."""
        return self.masks.state()

    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Goes on where `state` was taken."""
        put_shards_back(self.model)
        self.masks.load_state(tensors)
        self.step = step

    def finish(self) -> PruningResult:
        """A model with zeros and without masks."""
        self.let_go()
        put_shards_back(self.model)
        result = weight_result(self.inner, self.config, self.masks)
        self.masks.remove(restore=False)
        return result

    def abandon(self, *, restore: bool = True) -> None:
        """The raw weights, as far as training has changed them."""
        self.let_go()
        put_shards_back(self.model)
        if not restore:
            self.masks.delete()
        self.masks.remove(restore=True)


def chosen(model: Any, config: PruningConfig, *, only_layers: bool = False) -> list[WeightMatrix]:
    """The matrices that a configuration is about."""
    return choose_matrices(model, config.targets, only_layers=only_layers)
