"""What the pictures of the blocks have in common: short row labels, and the share kept in every bin of units."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .report import BlockReport


def short_labels(keys: Sequence[str]) -> tuple[str, list[str]]:
    """Block keys without the dotted parts at either end that all of them share.

    Args:
        keys: names of blocks, as `encoder.layer.0.attention`.

    Returns:
        The pattern they share, with a star where they differ (`encoder.layer.*.attention`), and what stands for the
        star in each of them. A single key, or keys that are all the same, stay as they are.
    """
    split = [key.split(".") for key in keys]
    if len(set(keys)) < 2:
        return "*", list(keys)
    head = _shared([parts[:-1] for parts in split])
    tail = _shared([parts[:head:-1] for parts in split])
    pattern = ".".join([*split[0][:head], "*", *split[0][len(split[0]) - tail :]])
    return pattern, [".".join(parts[head : len(parts) - tail]) for parts in split]


def units_per_bin(blocks: Sequence[BlockReport], bins: int) -> int:
    """The smallest bin size with which the widest block needs no more than `bins` bins."""
    return max(1, math.ceil(max((block.dense_units for block in blocks), default=1) / bins))


def kept_shares(block: BlockReport, size: int) -> list[float]:
    """The share of units kept in each run of `size` neighbouring units; the last run may be shorter.

    With a size of 1 this is the block's mask.
    """
    counts = [0] * math.ceil(block.dense_units / size)
    for unit in block.kept:
        counts[unit // size] += 1
    return [count / min(size, block.dense_units - size * index) for index, count in enumerate(counts)]


def _shared(rows: Sequence[Sequence[str]]) -> int:
    """How many leading items all rows have in common."""
    columns = list(zip(*rows, strict=False))
    return next((index for index, column in enumerate(columns) if len(set(column)) > 1), len(columns))
