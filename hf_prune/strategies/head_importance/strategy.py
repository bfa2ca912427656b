"""Pruning by head importance (Michel et al. 2019): gate gradients → the least important heads go, once or in rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from ...anatomy import ModelAnatomy
from ...budget import Selection, data_lengths, select_heads
from ...calibration import CalibrationData
from ...gates import UnitGates
from ...offloading import device_of
from ...report.clock import StageClock
from ...scores import collect_gradients, head_importance
from ..base import Cut, StagedStrategy
from ..scored import ScoredUnits, cut_of
from .config import HeadImportancePruningConfig

# Below every score: what has gone in one round does not come back in the next.
_GONE = -1.0


def measure_heads(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: HeadImportancePruningConfig,
    data: CalibrationData,
    clock: StageClock,
) -> ScoredUnits:
    """The importance of every head in the whole model."""
    everything = {block.key: torch.ones(block.units, dtype=torch.bool) for block in anatomy.blocks}
    with clock("gradients"):
        lengths = data_lengths(model, anatomy, data, config.sequence_length)
        return ScoredUnits(head_scores(model, anatomy, data, everything, config.normalize), lengths)


def choose_heads(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: HeadImportancePruningConfig,
    data: CalibrationData,
    clock: StageClock,
    units: ScoredUnits,
) -> Cut:
    """Decides which heads go; the same on every process. In every round the same number of heads goes, but for
    rounding."""
    assert config.heads is not None
    scores = units.scores
    selection = Selection({})
    for number in range(1, config.iterations + 1):
        if number > 1:
            with clock("gradients"):
                scores = head_scores(model, anatomy, data, selection.masks, config.normalize)
        fraction = 1 - (1 - config.heads) * number / config.iterations
        with clock("search"):
            selection = select_heads(anatomy, scores, config, per_layer=config.scope == "layer", fraction=fraction)
    return cut_of(anatomy, selection, units.lengths)


prune_by_head_importance = StagedStrategy(measure_heads, choose_heads)


def head_scores(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    data: CalibrationData,
    masks: Mapping[str, torch.Tensor],
    normalize: bool = True,
) -> dict[str, torch.Tensor]:
    """The importance of every head in the model without those that `masks` has off, by block key."""
    found = {block.key: torch.full((block.units,), _GONE, dtype=torch.float64) for block in anatomy.attentions}
    left = [block for block in anatomy.attentions if masks[block.key].any()]
    if not left:
        return found
    with UnitGates(model, left, [masks[block.key].to(device_of(model)) for block in left]):
        rows = data.agree(lambda: collect_gradients(model, replace(anatomy, blocks=tuple(left)), data, keep_rows=False))
    totals = [data.sum(rows[block.key].absolute_sum) for block in left]
    examples = int(data.sum(torch.tensor(rows[left[0].key].examples, device=device_of(model))))
    for block, score in zip(left, head_importance(totals, examples, normalize), strict=True):
        found[block.key] = score.cpu().masked_fill(~masks[block.key], _GONE)
    return found
