"""Many cuts of one model from one calibration sample: what does not depend on the budget is measured once.

As in `hf_prune.sweep`, the stages are those of `prune_model`, and so is the cut. Here cuts may differ in more than the
budget, and the time of each is known as if it had been alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from hf_prune import FisherPruningConfig
from hf_prune.anatomy import ModelAnatomy
from hf_prune.pruning_run import PruningRun
from hf_prune.strategies.base import Cut
from hf_prune.strategies.fisher import prune_by_fisher
from hf_prune.strategies.fisher.strategy import rearrange_masks
from hf_prune.strategies.fisher.unit_scores import FisherStatistics
from hf_prune.surgery import PruningPlan

# What the statistics do not depend on, besides the budget; whether units are rearranged is asked for by itself.
_LATER = {*FisherPruningConfig.BUDGETS, "metric", "recovery", "rearrange", "solver", "damp"}

Masks = dict[str, torch.Tensor]


class SharedStatistics:
    """A dense model with a calibration sample, and what was measured on it.

    Args:
        run: the model and the sample.
    """

    def __init__(self, run: PruningRun) -> None:
        self.run = run
        self._measured: dict[str, tuple[FisherStatistics, float]] = {}

    def cut(self, config: FisherPruningConfig, searched: bool = True) -> tuple[Cut, float]:
        """The cut that `config` asks for, and the seconds that it takes when nothing has been measured before.

        Args:
            config: settings with a budget; one in FLOPs where nothing is searched.
            searched: False keeps the same fraction of the heads and of the filters instead of searching.
        """
        run = self.run
        statistics, seconds = self._statistics(config)
        start = time.perf_counter()
        if searched:
            cut = prune_by_fisher.choose(run.model, run.anatomy, config, run.data, run.clock, statistics)
        else:
            cut = self._best(config, statistics)
        cut = prune_by_fisher.repair(run.model, run.anatomy, config, run.data, run.clock, cut)
        return cut, seconds + time.perf_counter() - start

    def _statistics(self, config: FisherPruningConfig) -> tuple[FisherStatistics, float]:
        settings = {name: value for name, value in config.to_dict().items() if name not in _LATER}
        key = repr((settings, config.rearranges))
        if key not in self._measured:
            run, start = self.run, time.perf_counter()
            found = prune_by_fisher.measure(run.model, run.anatomy, config, run.data, run.clock)
            self._measured[key] = found, time.perf_counter() - start
        return self._measured[key]

    def _best(self, config: FisherPruningConfig, statistics: FisherStatistics) -> Cut:
        assert config.flops is not None
        blocks = self.run.anatomy.blocks
        masks = highest_scores(self.run.anatomy, statistics.candidates[0], config.flops)
        if config.rearranges:
            masks = rearrange_masks(masks, statistics.rows, self.run.data)
        return Cut(PruningPlan.from_masks(blocks, [masks[block.key] for block in blocks]), statistics.lengths)


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
