"""Weight refit: a block's output projection, solved anew on its kept units by ridge regression."""

from __future__ import annotations

import torch

from .mask_tuning import solve_positive
from .normal_equations import NormalEquations, extend

# Ridge strengths that are tried, relative to the mean square of the kept activations.
RIDGE_GRID: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Used where there are too few batches to hold one out.
DEFAULT_RIDGE = 1e-2


def refit_projection(
    equations: NormalEquations, weight: torch.Tensor, bias: torch.Tensor | None, ridge: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """argmin over W, c of Σ ‖W h + c − b‖² + ridge · s · ‖W − weight‖², with s the summed mean square of h.

    Pulling towards the old weights rather than towards zero leaves directions alone that the calibration data says
    nothing about. The bias is not penalised.

    Args:
        equations: sums over calibration tokens.
        weight: the old weights on the kept units, `[hidden, columns]`.
        bias: the old bias, or None if the projection has none; then none is fitted.
        ridge: relative strength, ≥ 0.

    Returns:
        The new weight and bias, in the old ones' dtype.
    """
    old = extend(weight, bias)
    gram, cross = equations.gram, equations.cross
    rows = len(gram) if bias is not None else len(gram) - 1
    rest = (cross - gram @ old)[:rows]
    penalty = torch.full((len(gram),), ridge * _scale(gram), dtype=gram.dtype, device=gram.device)
    penalty[-1] = 0.0
    step = solve_positive(gram[:rows, :rows] + penalty[:rows].diag(), rest)
    new = old[:rows] + step
    columns = len(gram) - 1
    return new[:columns].T.to(weight.dtype), None if bias is None else new[-1].to(bias.dtype)


def choose_ridge(
    fit: NormalEquations, held_out: NormalEquations, weight: torch.Tensor, bias: torch.Tensor | None
) -> float | None:
    """The strength from `RIDGE_GRID` with the smallest error on held-out tokens.

    Returns:
        None where no strength beats the old weights: then they should stay.
    """
    if not held_out.tokens:
        return DEFAULT_RIDGE
    errors = {
        ridge: held_out.error(*refit_projection(fit, weight.double(), _double(bias), ridge)) for ridge in RIDGE_GRID
    }
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < held_out.error(weight, bias) else None


def _double(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.double()


def _scale(gram: torch.Tensor) -> float:
    """Mean diagonal of the activations' Gram matrix, the trailing 1 left out."""
    diagonal = gram.diagonal()[:-1]
    return float(diagonal.mean()) if len(diagonal) else 0.0
