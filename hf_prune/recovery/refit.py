"""Weight refit: a block's output projection, solved anew on its kept units by ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from .mask_tuning import ACCEPTED_SCALE, positive_solver
from .normal_equations import NormalEquations, extend, some_rows

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
    return refit_on((equations,), weight, bias, ridge)


def refit_on(
    parts: Sequence[NormalEquations],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    ridge: float,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`refit_projection` on several sums together; with a `dtype` the result has that one."""
    columns = weight.shape[1]
    rows = columns if bias is None else columns + 1
    solve = positive_solver(partial(_damped, parts, rows, ridge))
    new = torch.empty_like(weight, dtype=dtype)
    offset = None if bias is None else torch.empty_like(bias, dtype=dtype)
    for some in some_rows(weight):
        old = extend(weight[some], None if bias is None else bias[some])
        rest = torch.zeros_like(old)
        for part in parts:
            rest += part.cross[:, some]
            rest -= part.gram @ old
        solution = old[:rows] + solve(rest[:rows])
        new[some] = solution[:columns].T.to(new.dtype)
        if offset is not None:
            offset[some] = solution[-1].to(offset.dtype)
    return new, offset


def _damped(parts: Sequence[NormalEquations], rows: int, ridge: float) -> torch.Tensor:
    """The sum of the Gram matrices with the penalty on their diagonal, for the bias without."""
    gram = parts[0].gram[:rows, :rows].clone()
    for part in parts[1:]:
        gram += part.gram[:rows, :rows]
    penalised = gram.diagonal()[: len(parts[0].gram) - 1]
    if len(penalised):
        penalised += ridge * penalised.mean()  # the mean square of the activations
    return gram


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
        new, offset = refit_on((fit,), weight, bias, ridge, torch.float64)
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
