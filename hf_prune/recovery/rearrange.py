"""Mask rearrangement: which units of a block go, once it is settled how many (Kwon et al. 2022, section 4.2)."""

from __future__ import annotations

import torch

from ..errors import PruningError


def rearrange_mask(mask: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Exchanges pruned for kept units where that lowers the block's Fisher loss (Eq. 11).

    The loss of a pruned set P is ‖Σ_{i∈P} g_i‖² over examples, with the block's full Fisher matrix rather than its
    diagonal. Greedy, one pass: each kept unit, in ascending importance, enters P, and the unit whose release lowers
    the loss most (it may be the same one) leaves it.

    With the Gram matrix A = GᵀG at hand and c = A·1_P kept up to date, releasing j changes the loss by A_jj − 2 c_j:
    every step costs one row of A instead of a pass over all examples.

    Args:
        mask: `[units]`, non-zero where a unit is kept.
        gradients: `[examples, units]` per-example gate gradients, or any matrix with the same Gram matrix.

    Returns:
        A bool mask with the same number of kept units, on the mask's device.

    Raises:
        PruningError: the shapes do not fit or a gradient is not finite.
    """
    if mask.dim() != 1 or gradients.dim() != 2 or gradients.shape[1] != len(mask):
        raise PruningError(
            f"A mask of shape {tuple(mask.shape)} does not fit gradients of shape {tuple(gradients.shape)};"
            " expected [units] and [examples, units]."
        )
    if not torch.isfinite(gradients).all():
        raise PruningError("The gradients hold NaN or infinite values; check the calibration loss.")
    rows = gradients.double()
    return rearrange_with_gram(mask, rows.T @ rows)


def rearrange_with_gram(mask: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """`rearrange_mask` for a Gram matrix `[units, units]`, float64."""
    gram = gram.cpu()
    pruned = ~mask.bool().cpu()
    importance = gram.diagonal()
    kept = (~pruned).nonzero().flatten()
    entering = kept[importance[kept].argsort(stable=True)].tolist()
    if not pruned.any():
        return mask.bool()
    coupling = gram[:, pruned].sum(1)
    # Units outside P must never be released: their gain is +inf.
    barrier = torch.where(pruned, 0.0, torch.inf).double()
    for unit in entering:
        coupling += gram[unit]
        barrier[unit] = 0.0
        released = int((importance - 2 * coupling + barrier).argmin())
        coupling -= gram[released]
        barrier[released] = torch.inf
    return barrier.isinf().to(mask.device)
