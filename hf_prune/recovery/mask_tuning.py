"""Mask tuning: one scale per kept unit, by damped least squares (Kwon et al. 2022, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from scipy.sparse.linalg import lsmr as scipy_lsmr

from ..errors import PruningError
from .normal_equations import NormalEquations

Solver = Literal["direct", "lsmr"]

ACCEPTED_SCALE = 10.0
# LSMR's reasons to stop that mean success: an exact solution, or one within its tolerances.
LSMR_CONVERGED = (0, 1, 2)


def unit_equations(
    equations: NormalEquations, weight: torch.Tensor, bias: torch.Tensor | None, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The normal equations of the scales: AᵀA `[units, units]` and Aᵀb `[units]`, float64.

    Column u of A holds unit u's contribution W_u h_u of every token and output dimension, flattened; it is never
    formed: AᵀA = Σ over the columns of each pair of units of (WᵀW) ∘ (Σ h hᵀ).

    Args:
        equations: sums over tokens.
        weight: the output projection, `[hidden, columns]`.
        bias: its bias, which the scales leave alone.
        columns: the unit that each column belongs to, `[columns]`, from 0 on without gaps.
    """
    weight = weight.double()
    overlap = (weight.T @ weight) * equations.gram[:-1, :-1]
    gram = _unit_sums(_unit_sums(overlap, columns).T, columns)
    cross = equations.cross[:-1]
    if bias is not None:
        cross = cross - equations.gram[:-1, -1:] * bias.double()
    return gram, _unit_sums((cross * weight.T).sum(1), columns)


def _unit_sums(values: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Sums of `[columns, ...]` over each unit's columns, `[units, ...]`."""
    units = int(columns.max()) + 1 if len(columns) else 0
    if units == len(columns):  # filters: a column each
        return values[columns.argsort()]
    return values.new_zeros(units, *values.shape[1:]).index_add_(0, columns, values)


def solve_mask_scales(
    gram: torch.Tensor, target: torch.Tensor, damp: float = 1.0, solver: Solver = "direct"
) -> torch.Tensor:
    """Scales m = 1 + r with r = argmin ‖A r − (b − A·1)‖² + damp² ‖r‖².

    Args:
        gram: AᵀA, `[units, units]`.
        target: Aᵀb, `[units]`.
        damp: damping; the paper's value is 1.
        solver: "direct" solves (AᵀA + damp² I) r = Aᵀb − AᵀA·1 in float64; "lsmr" runs the paper's iterative solver
            (SciPy on the CPU, CuPy on CUDA) on a square factor of AᵀA, which gives the same iterates as A itself.

    Returns:
        `[units]`, float64; NaN where LSMR did not converge, which `acceptable` refuses.

    Raises:
        PruningError: the shapes do not fit, or "lsmr" on CUDA without CuPy.
    """
    if gram.dim() != 2 or gram.shape != (len(target), len(target)):
        raise PruningError(f"gram {tuple(gram.shape)} and target {tuple(target.shape)} do not fit: [n, n] and [n].")
    gram, target = gram.double(), target.double()
    rest = target - gram.sum(1)
    if solver == "lsmr":
        return 1 + _lsmr(gram, rest, damp)
    if solver != "direct":
        raise PruningError(f"solver={solver!r} is unknown; use 'direct' or 'lsmr'.")
    damped = gram + damp**2 * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return 1 + solve_positive(damped, rest[:, None])[:, 0]


def solve_positive(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solves `matrix @ x = right` for a positive semi-definite float64 matrix; least-norm where it is singular."""
    return positive_solver(matrix.clone)(right)


def positive_solver(make: Callable[[], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `solve_positive` does, for many right-hand sides; memory holds the matrix once.

    Args:
        make: gives the matrix, which is overwritten; called a second time where the matrix is singular.
    """
    matrix = make()
    accepted = torch.finfo(matrix.dtype).eps * matrix.trace()
    # In place, which needs columns next to each other; the matrix is its own transpose.
    factor, info = matrix.mT, torch.zeros((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    # A pivot of the size of the rounding error says that the matrix is singular, though it was not found negative.
    if int(info) == 0 and bool((factor.diagonal().square() > accepted).all()):
        return partial(_solve_by_factor, factor)
    del matrix, factor
    values, vectors = torch.linalg.eigh(make())
    cutoff = values[-1:].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(values > cutoff, 1 / values, 0.0)
    return lambda right: vectors @ (inverse[:, None] * (vectors.T @ right))


def _solve_by_factor(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """With the lower triangular factor of a matrix; `torch.cholesky_solve` would copy it."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def acceptable(scales: torch.Tensor) -> bool:
    """Whether the scales are finite and within [−10, 10], the range the paper accepts."""
    return bool(torch.isfinite(scales).all() and (scales.abs() <= ACCEPTED_SCALE).all())


def _lsmr(gram: torch.Tensor, rest: torch.Tensor, damp: float) -> torch.Tensor:
    """LSMR on the square root S of AᵀA (SᵀS = AᵀA, Sᵀc = rest): as many rows as units instead of tokens × hidden."""
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0)
    cutoff = values[-1:] * len(values) * torch.finfo(values.dtype).eps
    root = values.sqrt()
    factor = root[:, None] * vectors.T
    right = torch.where(values > cutoff, 1 / root, 0.0) * (vectors.T @ rest)
    to_array, lsmr, to_tensor = _lsmr_backend(gram.device)
    # SciPy stops after n iterations by default, which is too early for most blocks; CuPy's default is 5 n.
    solution, reason = lsmr(to_array(factor), to_array(right), damp=damp, maxiter=5 * len(gram))[:2]
    if int(reason) not in LSMR_CONVERGED:
        return torch.full_like(rest, torch.nan)
    return to_tensor(solution)


def _lsmr_backend(device: torch.device) -> tuple[Any, Any, Any]:
    """How to hand a tensor over, the solver, and how to take its result back, for a device."""
    if device.type != "cuda":
        return (lambda tensor: tensor.cpu().numpy()), scipy_lsmr, (lambda array: torch.from_numpy(array).to(device))
    try:
        import cupy
        from cupyx.scipy.sparse.linalg import lsmr as cupy_lsmr
    except ImportError as error:
        raise PruningError(
            "solver='lsmr' on CUDA needs CuPy: pip install 'hf-prune[cuda12]' (or cuda13), or use solver='direct'."
        ) from error
    return cupy.from_dlpack, cupy_lsmr, torch.from_dlpack
