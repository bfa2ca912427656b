"""The stages of `prune_model`, so that many cuts can share one pass over a calibration sample.

The gradients take most of the time and depend on the sample only, not on the budget or the repair. Everything
here calls the functions that `FisherPruningConfig`'s strategy itself is made of; the cut is the one that
`prune_model` would make.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedModel

from hf_prune import FisherPruningConfig, describe_model
from hf_prune.anatomy import ModelAnatomy
from hf_prune.budget import select_units
from hf_prune.calibration import CalibrationData
from hf_prune.scores import Labels
from hf_prune.strategies.base import Cut
from hf_prune.strategies.fisher.strategy import rearrange_masks, repair_blocks
from hf_prune.strategies.fisher.unit_scores import GradientStatistics, unit_scores
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
        self._statistics: dict[str, GradientStatistics] = {}
        self._last_masks: tuple[Any, Masks, list[str]] = (None, {}, [])

    def statistics(self, labels: Labels) -> GradientStatistics:
        """What the gradients of the whole sample tell, for the data's labels or the model's."""
        if labels not in self._statistics:
            self._statistics[labels] = GradientStatistics.collect(self.model, self.anatomy, self.data, labels)
        return self._statistics[labels]

    def cut(self, config: FisherPruningConfig, searched: bool) -> Cut:
        """The cut that `config` asks for.

        Args:
            config: budget in FLOPs, importance, rearrangement and repair.
            searched: False keeps the same fraction of the heads and of the filters instead of searching.
        """
        sequence_length = config.sequence_length or self.data.sequence_length() or 1
        masks, notes = self._masks(config, searched, sequence_length)
        plan = PruningPlan.from_masks(self.anatomy.blocks, [masks[block.key] for block in self.anatomy.blocks])
        repairs = repair_blocks(self.model, self.anatomy, config, self.data, plan, notes)
        return Cut(plan, sequence_length, repairs, tuple(notes))

    def _masks(self, config: FisherPruningConfig, searched: bool, sequence_length: int) -> tuple[Masks, list[str]]:
        """Which units stay; the last answer is kept, because cuts that differ in their repair follow each other."""
        repair = _REPAIR_FIELDS - {"refit_examples"} if config.importance == "after_refit" else _REPAIR_FIELDS
        settings = {name: value for name, value in config.to_dict().items() if name not in repair}
        key = (settings, config.rearranges, searched, sequence_length)
        if self._last_masks[0] != key:
            self._last_masks = (key, *self._new_masks(config, searched, sequence_length))
        return self._last_masks[1], list(self._last_masks[2])

    def _new_masks(self, config: FisherPruningConfig, searched: bool, sequence_length: int) -> tuple[Masks, list[str]]:
        needs_gradients = config.importance != "magnitude" or config.rearranges
        statistics = self.statistics(cast(Labels, config.labels)) if needs_gradients else GradientStatistics()
        scores = unit_scores(self.model, self.anatomy, config, statistics, self.data)
        if searched:
            selection = select_units(self.model, self.anatomy, scores, config, self.data, sequence_length)
            masks, notes = selection.masks, selection.notes
        else:
            assert config.flops is not None
            masks, notes = highest_scores(self.anatomy, scores, config.flops), []
        return (rearrange_masks(masks, statistics.rows, self.data) if config.rearranges else masks), notes


def highest_scores(anatomy: ModelAnatomy, scores: Masks, fraction: float) -> Masks:
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
