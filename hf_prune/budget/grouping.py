"""Ladders: the widths to which a block, or all blocks of a kind together, may be cut.

A search never picks single units.  Within a block the best units come first, so what is left to choose is *how many*
to keep, and the options (a multiple per block, the same width in every block, a minimum) only say which counts are
allowed.  A ladder lists them: rung 0 keeps nothing, the last rung keeps everything.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np
import torch
from torch import Tensor

from ..errors import PruningError

Scores = Sequence[Tensor] | Tensor


@dataclass(frozen=True, eq=False)
class Ladder:
    """The allowed widths of one block, or of several blocks that are cut alike.

    Attributes:
        blocks: positions of the blocks in the list of their kind.
        rankings: for every block its units, best first (equal scores: the lower index first).
        widths: [rungs + 1] how many units every block keeps at each rung, ascending from 0.
        gains: [rungs] what each rung adds to the kept score, float64.
        floor: the lowest rung that may be chosen.
    """

    blocks: tuple[int, ...]
    rankings: tuple[np.ndarray, ...]
    widths: tuple[int, ...]
    gains: np.ndarray
    floor: int


def score_blocks(scores: Scores, kind: str) -> list[Tensor]:
    """The scores as one 1-D tensor per block.

    Args:
        scores: a list of 1-D tensors, or a 2-D tensor whose rows are the blocks.
        kind: "head" or "filter", for the messages.

    Raises:
        PruningError: if a block is not 1-D, or holds a negative, NaN or infinite score.
    """
    if isinstance(scores, Tensor) and scores.dim() != 2:
        raise PruningError(
            f"{kind} scores came as one tensor of shape {tuple(scores.shape)}; "
            "pass a list with one 1-D tensor per block, or a 2-D tensor with one row per block"
        )
    blocks = list(scores)
    for index, block in enumerate(blocks):
        if not isinstance(block, Tensor) or block.dim() != 1:
            found = f"shape {tuple(block.shape)}" if isinstance(block, Tensor) else type(block).__name__
            raise PruningError(f"{kind} scores of block {index} must be a 1-D tensor, got {found}")
        values = block.detach().double()
        if not bool(torch.isfinite(values.sum())):
            raise PruningError(
                f"{kind} scores of block {index} must be finite, but they hold NaN or infinity or their sum overflows; "
                "check the calibration data and the loss"
            )
        if bool((values < 0).any()):
            raise PruningError(
                f"{kind} scores of block {index} must not be negative, got {values.min().item():g}; "
                "shift them or take their absolute value first"
            )
    return blocks


def build_ladders(
    blocks: Sequence[Tensor],
    kind: str,
    *,
    multiple: int | Sequence[int] = 1,
    uniform: bool = False,
    minimum: Sequence[int] | None = None,
    groups: Sequence[Hashable | None] | None = None,
) -> list[Ladder]:
    """One ladder per block, or one for several blocks when they must keep the same width.

    Args:
        blocks: one 1-D score tensor per block, as `score_blocks` returns them.
        kind: "head" or "filter", for the messages.
        multiple: kept counts are multiples of this; a block whose size is no multiple may also be kept whole. One
            number, or one per block.
        uniform: every block keeps the same count; the blocks must then have the same size.
        minimum: for every block the count that must be kept, rounded up to an allowed count.
        groups: for every block the name of its group, or None: blocks of a group keep the same count each, of units
            of their own, and must have the same size.

    Raises:
        PruningError: if a multiple is below 1, a minimum does not fit its block, or blocks that must keep the same
            count differ in size.
    """
    multiples, minima = _multiples(blocks, kind, multiple), _minima(blocks, kind, minimum)
    if uniform:
        _check_sizes(blocks, kind, "uniform widths need", "; prune this model without uniform=True")
    ladders = []
    for indices in _together(len(blocks), kind, uniform, groups):
        members = [blocks[index] for index in indices]
        _check_sizes(members, kind, f"the group {groups[indices[0]]!r} needs" if groups else "uniform widths need")
        # Units of several blocks go together, so every block's multiple has to divide the count.
        step = lcm(*(multiples[index] for index in indices))
        ladders.append(_ladder(indices, members, step, max(minima[index] for index in indices)))
    return ladders


def ladder_masks(ladders: Sequence[Ladder], rungs: Sequence[int], blocks: Sequence[Tensor]) -> list[Tensor]:
    """The masks of one kind: a bool tensor per block, true where a unit is kept, on the device of its scores."""
    masks = [torch.zeros(block.numel(), dtype=torch.bool) for block in blocks]
    for ladder, rung in zip(ladders, rungs, strict=True):
        for index, ranking in zip(ladder.blocks, ladder.rankings, strict=True):
            masks[index][torch.from_numpy(ranking[: ladder.widths[rung]])] = True
    return [mask.to(block.device) for mask, block in zip(masks, blocks, strict=True)]


def _together(blocks: int, kind: str, uniform: bool, groups: Sequence[Hashable | None] | None) -> list[tuple[int, ...]]:
    """The positions of the blocks that share a ladder, in the order of the first of each."""
    if uniform:
        return [tuple(range(blocks))] if blocks else []
    if groups is None:
        return [(index,) for index in range(blocks)]
    if len(groups) != blocks:
        raise PruningError(f"{kind} groups has {len(groups)} entries for {blocks} blocks; give one per block, or None")
    # A block of no group stands alone: under its position, in a tuple that no other key equals.
    found: dict[tuple[str, Hashable], list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(("alone", index) if group is None else ("group", group), []).append(index)
    return [tuple(indices) for indices in found.values()]


def _check_sizes(blocks: Sequence[Tensor], kind: str, who: str, advice: str = "") -> None:
    sizes = {block.numel() for block in blocks}
    if len(sizes) > 1:
        raise PruningError(f"{who} {kind} blocks of one size, but these have sizes {sorted(sizes)}{advice}")


def _multiples(blocks: Sequence[Tensor], kind: str, multiple: int | Sequence[int]) -> list[int]:
    multiples = list(multiple) if isinstance(multiple, Sequence) else [multiple]
    for value in multiples:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise PruningError(f"the {kind} multiple must be an integer of at least 1, got {value!r}")
    if not isinstance(multiple, Sequence):
        return multiples * len(blocks)
    if len(multiples) != len(blocks):
        raise PruningError(
            f"{kind} multiples has {len(multiples)} entries for {len(blocks)} blocks; give one per block"
        )
    return multiples


def _minima(blocks: Sequence[Tensor], kind: str, minimum: Sequence[int] | None) -> list[int]:
    if minimum is None:
        return [0] * len(blocks)
    counts = [int(count) for count in minimum]
    if len(counts) != len(blocks):
        raise PruningError(f"minimum {kind}s has {len(counts)} entries for {len(blocks)} blocks; give one per block")
    for index, (count, block) in enumerate(zip(counts, blocks, strict=True)):
        if not 0 <= count <= block.numel():
            raise PruningError(
                f"minimum {kind}s of block {index} is {count}; it must lie between 0 and the block's {block.numel()}"
            )
    return counts


def _ladder(indices: tuple[int, ...], blocks: Sequence[Tensor], multiple: int, minimum: int) -> Ladder:
    size = blocks[0].numel()
    # A remainder is the last rung of its own: the worst units, so no rung is denser in score than the one before it.
    widths = [*range(0, size, multiple), size] if size else [0]
    rankings, gains = [], np.zeros(len(widths) - 1)
    for block in blocks:
        values = block.detach().cpu().double().numpy()
        ranking = np.argsort(-values, kind="stable")
        rankings.append(ranking)
        if size:
            gains += np.add.reduceat(values[ranking], widths[:-1])
    floor = next(rung for rung, width in enumerate(widths) if width >= minimum)
    return Ladder(indices, tuple(rankings), tuple(widths), gains, floor)
