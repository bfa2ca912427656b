"""The stages of `prune_model`, so that many cuts can share one pass over a calibration sample.

The gradients take most of the time and depend on the sample only, not on the budget or the repair. Everything
here calls the functions that `FisherPruningConfig`'s strategy itself is made of; the cut is the one that
`prune_model` would make.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from hf_prune import FisherPruningConfig, describe_model
from hf_prune.anatomy import ModelAnatomy
from hf_prune.calibration import CalibrationData
from hf_prune.report.clock import StageClock
from hf_prune.scores import Labels
from hf_prune.strategies.base import Cut
from hf_prune.strategies.fisher.strategy import FisherStatistics, choose_units, rearrange_masks, repair_units
from hf_prune.strategies.fisher.unit_scores import GradientStatistics, score_candidates
from hf_prune.surgery import PruningPlan

_REPAIR_FIELDS = {"recovery", "solver", "damp", "refit_examples"}

Masks = dict[str, torch.Tensor]


class SharedGradients:
    """One calibration sample of a model, and what its cuts have in common.

    Args:
        model: the dense model.
        data: the sample.
    """

    def __init__(self, model: PreTrainedModel, data: CalibrationData) -> None:
        self.model = model
        self.data = data
        self.anatomy = describe_model(model)
        self._gradients: dict[str, GradientStatistics] = {}
        self._last_choice: tuple[Any, Any] = (None, None)

    def gradients(self, labels: Labels) -> GradientStatistics:
        """What the gradients of the whole sample tell, for the data's labels or the model's."""
        if labels not in self._gradients:
            self._gradients[labels] = GradientStatistics.collect(self.model, self.anatomy, self.data, labels)
        return self._gradients[labels]

    def cut(self, config: FisherPruningConfig, searched: bool) -> Cut:
        """The cut that `config` asks for.

        Args:
            config: budget in FLOPs, importance, rearrangement and repair.
            searched: False keeps the same fraction of the heads and of the filters instead of searching.
        """
        cut = self._choice(config, searched)
        return repair_units(self.model, self.anatomy, config, self.data, StageClock(), cut)

    def _choice(self, config: FisherPruningConfig, searched: bool) -> Cut:
        """Which units stay; the last answer is kept, because cuts that differ in their repair follow each other."""
        counts_on_repair = config.importance in ("after_refit", "blended")
        settings = {
            name: value for name, value in config.to_dict().items() if counts_on_repair or name not in _REPAIR_FIELDS
        }
        key = (settings, config.rearranges, searched)
        if self._last_choice[0] != key:
            self._last_choice = (key, self._new_choice(config, searched))
        return self._last_choice[1]

    def _new_choice(self, config: FisherPruningConfig, searched: bool) -> Cut:
        needs_gradients = config.importance != "magnitude" or config.rearranges
        gradients = self.gradients(cast(Labels, config.labels)) if needs_gradients else GradientStatistics()
        candidates = score_candidates(self.model, self.anatomy, config, gradients, self.data)
        length = config.sequence_length or self.data.sequence_length() or 1
        if searched:
            statistics = FisherStatistics(candidates, length, gradients.rows)
            return choose_units(self.model, self.anatomy, config, self.data, StageClock(), statistics)
        assert config.flops is not None
        masks = highest_scores(self.anatomy, candidates[0], config.flops)
        if config.rearranges:
            masks = rearrange_masks(masks, gradients.rows, self.data)
        plan = PruningPlan.from_masks(self.anatomy.blocks, [masks[block.key] for block in self.anatomy.blocks])
        return Cut(plan, length)


def highest_scores(anatomy: ModelAnatomy, scores: Mapping[str, torch.Tensor], fraction: float) -> Masks:
    """Keeps a fraction of the heads and the same fraction of the filters, each ranked over all layers."""
    masks: Masks = {}
    for blocks in (anatomy.attentions, anatomy.feed_forwards):
        joined = torch.cat([scores[block.key] for block in blocks])
        best = joined.argsort(descending=True, stable=True)[: int(fraction * len(joined))]
        kept = torch.zeros(len(joined), dtype=torch.bool)
        kept[best.cpu()] = True
        sizes = [block.units for block in blocks]
        masks |= {block.key: part for block, part in zip(blocks, kept.split(sizes), strict=True)}
    return masks
