"""Static Model Pruning on an adapter's masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch

from ...errors import PruningError
from ...report.result import PruningResult
from ...report.weight_report import WeightReport
from ...scores import ParameterScores
from ...strategies.static_mask import StaticMaskPruner, StaticPruningConfig
from .masks import AdapterMasks


class AdapterPruner(StaticMaskPruner):
    """Masks that learn in a PEFT model's layers; the base model and its config stay as they are."""

    scores: ParameterScores

    def __init__(self, model: Any, config: StaticPruningConfig, steps: int, adapter: str) -> None:
        masks = AdapterMasks(model.get_base_model(), adapter)
        if any(layer.merged for layer in masks.layers):
            raise PruningError("A static mask is merged into the weights, and learns nothing there: unmerge it first.")
        scores = _scores(masks, adapter)
        super().__init__(
            model, config, steps, masks, ParameterScores(masks.matrices, scores, config.score_learning_rate)
        )
        self._score_count = sum(score.numel() for score in scores)
        self._begun = False

    def begin(self) -> None:
        """Begins with all weights, and scores that know nothing."""
        self._begun = True
        self.scores.start_anew()
        self.masks.remove(restore=True)
        super().begin()

    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Goes on where `state` was taken."""
        super().load_state(tensors, step)
        self._begun = True

    def before_step(self) -> None:
        """The scores have an optimizer of their own."""
        self.scores.set_aside(getattr(self.followed, "grad_scale", None))

    def _own_configs(self) -> None:
        """The base model's config is not written to."""

    def _note(self) -> None:
        """The base model is not pruned; the adapter's config says what the adapter is."""

    def abandon(self, *, restore: bool = True) -> None:
        """Masks that keep everything, or as they are; where nothing has begun they are an earlier training's."""
        self.let_go()
        self.masks.remove(restore=restore and self._begun)

    def finish(self) -> PruningResult:
        """The PEFT model, with the masks in its adapter."""
        result = super().finish()
        result.model = self.model
        report = cast(WeightReport, result.report)
        result.report = replace(report, parameters=report.parameters - self._score_count)
        return result


def _scores(masks: AdapterMasks, adapter: str) -> list[torch.Tensor]:
    scores = []
    for matrix, layer in zip(masks.matrices, masks.layers, strict=True):
        if adapter not in layer.static_mask_scores:
            raise PruningError(
                f"The adapter {adapter!r} was loaded without scores to learn ({matrix.name}): load it with"
                " is_trainable=True to train it."
            )
        score = layer.static_mask_scores[adapter]
        if score.dtype != torch.float32:
            raise PruningError(
                f"The scores of {matrix.name} are of {str(score.dtype).removeprefix('torch.')}, but must stay float32:"
                " convert the base model before get_peft_model, or train with bf16=True, which needs no conversion."
            )
        scores.append(score)
    return scores
