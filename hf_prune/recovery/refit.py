"""Weight refit: a block's output projection, solved anew on its kept units by ridge regression."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .mask_tuning import ACCEPTED_SCALE, solve_positive
from .normal_equations import NormalEquations, extend

# Ridge strengths that are tried, relative to the mean square of the kept activations.
RIDGE_GRID: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
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

    def error(ridge: float) -> float:
        new, offset = refit_projection(fit, weight.double(), _double(bias), ridge)
        return held_out.error(new, offset) if reasonable(new, weight) else torch.inf

    best, lowest = _descend(error)
    return best if lowest < held_out.error(weight, bias) else None


def reasonable(new: torch.Tensor, old: torch.Tensor) -> bool:
    """Whether refitted weights stay within ten times the old ones' norm.

    Where all kept activations are close to zero, huge weights can fit a few tokens; the paper bounds its scales alike.
    """
    return bool(torch.isfinite(new).all()) and bool(new.double().norm() <= ACCEPTED_SCALE * old.double().norm())


def _descend(error: Callable[[float], float]) -> tuple[float, float]:
    """The lowest error on `RIDGE_GRID`, walking downhill from its middle: the error has one valley in the strength."""
    at = len(RIDGE_GRID) // 2
    errors = {at: error(RIDGE_GRID[at])}
    while errors[at] == torch.inf and at + 1 < len(RIDGE_GRID):  # stronger ridges stay closer to the old weights
        at += 1
        errors[at] = error(RIDGE_GRID[at])
    for step in (-1, 1):
        while 0 <= at + step < len(RIDGE_GRID):
            if at + step not in errors:
                errors[at + step] = error(RIDGE_GRID[at + step])
            if errors[at + step] >= errors[at]:
                break
            at += step
    return RIDGE_GRID[at], errors[at]


def _double(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.double()


def _scale(gram: torch.Tensor) -> float:
    """Mean diagonal of the activations' Gram matrix, the trailing 1 left out."""
    diagonal = gram.diagonal()[:-1]
    return float(diagonal.mean()) if len(diagonal) else 0.0
