"""Which heads stay where the budget is a number of heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from ..anatomy import ModelAnatomy
from ..count_budgets import HeadBudgetConfig
from ..errors import PruningError
from .targets import Selection, wanted_keys
from .weight_selection import masks_over


def head_count(total: int, fraction: float) -> int:
    """How many of `total` heads a fraction is, rounded down: 0.3 of 10 are 3, whatever a float makes of it."""
    return math.floor(total * fraction + 1e-9)


def keep_heads(
    scores: Sequence[torch.Tensor], fraction: float, *, per_layer: bool = False, minimum: int | Sequence[int] = 1
) -> list[torch.Tensor]:
    """The heads with the highest scores; of equal ones those that come first.

    Args:
        scores: one 1-D tensor per attention block, of any real numbers.
        fraction: of the heads to keep, rounded down.
        per_layer: every block keeps this fraction of its heads; otherwise all heads compete.
        minimum: how many must stay in a block, one number or one per block, also where the fraction is less.

    Returns:
        One bool mask per block, on the CPU, True where a head stays.

    Raises:
        PruningError: a score is not a number.
    """
    scores = [score.detach().cpu() for score in scores]
    minima = [minimum] * len(scores) if isinstance(minimum, int) else list(minimum)
    floors = [min(least, score.numel()) for least, score in zip(minima, scores, strict=True)]
    if per_layer:
        counts = [max(head_count(score.numel(), fraction), least) for score, least in zip(scores, floors, strict=True)]
        return [masks_over([score], count)[0] for score, count in zip(scores, counts, strict=True)]
    settled = [masks_over([score], least)[0] for score, least in zip(scores, floors, strict=True)]
    raised = [score.masked_fill(mask, torch.inf) for score, mask in zip(scores, settled, strict=True)]
    total = head_count(sum(score.numel() for score in scores), fraction)
    return masks_over(raised, max(total, sum(floors)))


def select_heads(
    anatomy: ModelAnatomy,
    scores: Mapping[str, torch.Tensor],
    config: HeadBudgetConfig,
    *,
    per_layer: bool,
    fraction: float | None = None,
) -> Selection:
    """Chooses the heads (KV groups) that stay under `heads=`; everything else of the model stays.

    Args:
        anatomy: from `describe_model`.
        scores: one score per unit, by block key, of the attention blocks at least.
        config: the budget, and which blocks may be pruned; the fraction is counted over these.
        per_layer: as for `keep_heads`.
        fraction: instead of the budget, for what is on the way to it.

    Raises:
        PruningError: no attention block may be pruned.
    """
    wanted = wanted_keys(anatomy, config)
    blocks = [block for block in anatomy.attentions if block.key in wanted and block.units]
    if not blocks:
        raise PruningError(
            "heads= has no heads to choose from: the model has none that can be told apart, or target_modules and"
            " exclude_modules leave none."
        )
    least = 0 if config.allow_empty_layers else 1
    fraction = config.heads if fraction is None else fraction
    assert fraction is not None  # strategies check that heads= is given
    chosen = keep_heads(
        [scores[block.key] for block in blocks],
        fraction,
        per_layer=per_layer,
        minimum=[max(block.minimum, least) for block in blocks],
    )
    masks = {block.key: torch.ones(block.units, dtype=torch.bool) for block in anatomy.blocks}
    masks |= {block.key: mask for block, mask in zip(blocks, chosen, strict=True)}
    kept, total = sum(int(mask.sum()) for mask in chosen), sum(block.units for block in blocks)
    if kept <= head_count(total, fraction):
        return Selection(masks)
    return Selection(masks, [f"heads={fraction:g} is less than what has to stay: {kept} of {total} heads."])
