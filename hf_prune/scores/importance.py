"""Scores of heads and filters: how much the loss is expected to suffer when a unit goes.

Each function gives one non-negative float64 tensor per block; the units of all blocks are comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..anatomy import Block, weight_of
from ..offloading import onloaded


def fisher_scores(gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Diagonal of the empirical Fisher information (Kwon et al. 2022, Eq. 5–7), up to the number of examples.

    Args:
        gradients: one `[examples, units]` tensor per block, or any matrix with the same Gram matrix.
    """
    return [gradient.double().square().sum(0) for gradient in gradients]


def gradient_scores(gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """First-order scores: the sum over examples of |∂loss/∂gate| (the gradient baseline of Kwon et al., A.11).

    Args:
        gradients: one `[examples, units]` tensor per block.
    """
    return [gradient.double().abs().sum(0) for gradient in gradients]


def magnitude_scores(model: nn.Module, blocks: Sequence[Block]) -> list[torch.Tensor]:
    """Weight magnitude: Σ|w| over every weight that belongs to a unit (the magnitude baseline of Kwon et al., A.11)."""
    return [_magnitude(model.get_submodule(block.layer), block) for block in blocks]


def unit_energies(gram: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of ‖W_u h_u‖², what each unit u contributes to its block's output (Park et al. 2024, "K-prune").

    Args:
        gram: E[h hᵀ] over tokens of the output projection's inputs, `[columns, columns]`.
        weight: the output projection, `[hidden, columns]`.
        columns: the unit that each column belongs to, `[columns]`, from 0 on without gaps.

    Returns:
        `[units]`, float64.
    """
    weight = weight.double()
    overlaps = (weight.T @ weight * gram.double()).where(columns[:, None] == columns, 0.0).sum(1)
    units = int(columns.max()) + 1 if len(columns) else 0
    return overlaps.new_zeros(units).index_add_(0, columns, overlaps).clamp(min=0)


def blend_scores(
    one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """(1 − share) · one + share · other, with each of the two divided by its sum over all units.

    Args:
        one, other: non-negative scores by block key; their keys must be the same.
        share: from 0 to 1.

    Returns:
        Scores by block key, on the CPU.
    """
    one, other = ({key: scores.cpu() for key, scores in kind.items()} for kind in (one, other))  # of layers anywhere
    totals = [float(torch.stack([scores.sum() for scores in kind.values()]).sum()) or 1.0 for kind in (one, other)]
    return {key: (1 - share) / totals[0] * scores + share / totals[1] * other[key] for key, scores in one.items()}


def random_scores(blocks: Sequence[Block], seed: int) -> list[torch.Tensor]:
    """Scores that mean nothing: each unit's number of parameters times a number drawn evenly from 0 to 1.

    Units of every kind are then worth the same per parameter on average, so a budget takes a like share of all.

    Args:
        blocks: their units are drawn in this order.
        seed: of a generator on the CPU, so that every process and every device draws the same.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        block.parameters_per_unit * torch.rand(block.units, generator=generator, dtype=torch.float64)
        for block in blocks
    ]


def _magnitude(layer: nn.Module, block: Block) -> torch.Tensor:
    with onloaded(layer):
        parts = [
            projection.sums_per_unit(weight_of(layer, projection).detach().abs(), block.units)
            for projection in block.projections
        ]
    return torch.stack(parts).sum(0)
