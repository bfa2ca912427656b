"""What each unit adds to a sublayer's output: head_i · W_i, of which only the largest entry is wanted.

The products of all heads together would take `[heads, batch, tokens, hidden]`. They are made one head after the other,
and not at all where it can be told without whether something in them is larger than a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..anatomy import Block
from .epsilon import is_open

Grouping = Callable[[torch.Tensor], torch.Tensor]

_ROOM = 1 + 1e-5  # for the rounding of a bound that is compared with a product


def split_units(block: Block, inputs: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The input of a block's output projection and its weight, unit by unit.

    Args:
        block: the block.
        inputs: `[..., columns]`.
        weight: `[hidden, columns]`.

    Returns:
        The units' slices `[..., units, width]`, and their weights `[units, width, hidden]`.
    """
    order = torch.from_numpy(block.columns.argsort(kind="stable"))
    if not torch.equal(order, torch.arange(len(order))):  # some models have the columns of a unit in several places
        inputs = inputs.index_select(-1, order.to(inputs.device))
        weight = weight.index_select(-1, order.to(weight.device))
    return inputs.unflatten(-1, (block.units, -1)), weight.T.unflatten(0, (block.units, -1))


def largest_contributions(
    slices: torch.Tensor, weights: torch.Tensor, units: Sequence[int], grouped: Grouping
) -> torch.Tensor:
    """max|head_i · W_i| over the positions of each group.

    Args:
        slices: `[..., units, width]`.
        weights: `[units, width, hidden]`.
        units: those that are asked for; the others have 0.
        grouped: brings `[..., n]` into groups, `[groups, positions, n]`, with 0 at padding.

    Returns:
        float32 `[groups, units]` (float64 for float64).
    """
    wide = _wide(slices)
    rows = slices.new_zeros(slices.shape[:-1], dtype=wide)
    for unit in units:
        product = slices[..., unit, :].to(wide) @ weights[unit].to(wide)
        rows[..., unit] = torch.linalg.vector_norm(product, torch.inf, dim=-1)
    return grouped(rows).amax(1)


def open_contributions(
    slices: torch.Tensor, weights: torch.Tensor, units: Sequence[int], grouped: Grouping, epsilon: float
) -> torch.Tensor:
    """Whether max|head_i · W_i| > ε; as `largest_contributions`, with fewer products.

    No entry is larger than max_t ‖head_i,t‖ · max_o ‖W_i,o‖, so a small bound settles it; and so does the product of
    the one position where the slice is longest, if that is large enough.

    Returns:
        bool `[groups, units]`; False for units that were not asked for.
    """
    wide = _wide(slices)
    longest, place = grouped(torch.linalg.vector_norm(slices, dim=-1, dtype=wide)).max(1)
    bound = longest * torch.linalg.vector_norm(weights, dim=1, dtype=wide).amax(-1)
    opened = (_products_at(slices, weights, place) > epsilon) & (longest > 0)  # the length of padding is 0 here
    unclear = (is_open(bound * _ROOM, epsilon) & ~opened).any(0).tolist()
    asked = torch.zeros(len(weights), dtype=torch.bool)
    asked[list(units)] = True
    exact = [unit for unit in units if unclear[unit]]
    if exact:
        opened |= is_open(largest_contributions(slices, weights, exact, grouped), epsilon)
    return opened & asked.to(opened.device)


def _products_at(slices: torch.Tensor, weights: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """The largest entry of each unit's product at one position `[groups, units]` of each group."""
    groups, units = place.shape
    positions = slices.reshape(groups, -1, units, slices.shape[-1])
    index = place[:, None, :, None].expand(-1, 1, -1, slices.shape[-1])
    chosen = positions.gather(1, index)[:, 0].to(_wide(slices))
    return torch.linalg.vector_norm(torch.einsum("guw,uwh->guh", chosen, weights.to(chosen)), torch.inf, dim=-1)


def _wide(values: torch.Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
