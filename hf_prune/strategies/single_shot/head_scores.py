"""Scores of heads: the meta-pruner's scores of their attention maps, averaged over examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...anatomy import Block
from ...calibration import Batch, valid_tokens
from ...errors import PruningError
from ...offloading import device_of
from .attention_maps import each_attention_map
from .meta_pruner import MetaPruner


class ScoreSums:
    """Sums of the scores of each block's units over examples.

    A KV group, which is pruned whole, has the mean score of its heads.

    Attributes:
        sums: `[units]` per block.
        counts: maps of one head that each block has shown, a number per block.
    """

    def __init__(self, blocks: Sequence[Block], device: torch.device) -> None:
        self._places = {block.key: index for index, block in enumerate(blocks)}
        self._orders = [_heads_by_unit(block).to(device) for block in blocks]
        self.sums = [torch.zeros(block.units, device=device) for block in blocks]
        self.counts = torch.zeros(len(blocks), device=device)

    def add(self, block: Block, scores: torch.Tensor) -> None:
        """Adds scores `[examples, heads]` of one block."""
        place = self._places[block.key]
        by_unit = scores.index_select(1, self._orders[place]).unflatten(1, (block.units, -1))
        self.sums[place] = self.sums[place] + by_unit.mean(dim=2).sum(dim=0)
        self.counts[place] += len(scores)

    def means(self) -> list[torch.Tensor]:
        """The mean score of every unit, per block."""
        return [total / count for total, count in zip(self.sums, self.counts, strict=True)]


def _heads_by_unit(block: Block) -> torch.Tensor:
    """The places of a block's heads, unit after unit: a unit's heads need not be next to each other (CodeGen)."""
    units = torch.from_numpy(block.columns).reshape(block.units * block.heads_per_unit, -1)[:, 0]
    return units.argsort(stable=True)


@torch.no_grad()
def score_heads(
    model: PreTrainedModel, blocks: Sequence[Block], pruner: MetaPruner, input_type: str, batches: Iterable[Batch]
) -> ScoreSums:
    """Scores the units of a model's attention blocks on some batches, one block's maps at a time.

    Args:
        model: a supported model with one list of layers.
        blocks: its attention blocks that are scored.
        pruner: in evaluation mode, on the model's device.
        input_type: "single" or "pair".
        batches: inputs on the model's device; labels are not looked at.

    Raises:
        PruningError: a block does not show its attention, or a batch is of the other type.
    """
    found = ScoreSums(blocks, device_of(model))
    for batch in batches:
        check_input_type(batch, input_type, model.config)
        each_attention_map(
            model,
            blocks,
            batch,
            pruner.config.map_size,
            lambda block, maps: found.add(block, pruner.scores(maps, input_type)),
        )
    return found


def check_input_type(batch: Batch, input_type: str, config: PreTrainedConfig) -> None:
    """Raises a PruningError where token types show examples of the other type, as far as a model has token types."""
    types = batch.get("token_type_ids")
    if types is None or (getattr(config, "type_vocab_size", 0) or 0) < 2:
        return
    valid = valid_tokens(batch)
    pairs = ((types.reshape(valid.shape) == 1) & valid).any(dim=-1)
    wrong = int((~pairs if input_type == "pair" else pairs).sum())
    if wrong:
        what = "have no second text" if input_type == "pair" else "have a second text"
        raise PruningError(
            f"input_type={input_type!r}, but {wrong} of {len(pairs)} examples of a batch {what} by their"
            " token_type_ids. Single sentences and pairs are scored differently: set input_type to what the task is,"
            " and give examples of one type."
        )
