"""The ε-gate: a mapping that puts out nothing larger than ε puts out nothing at all."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from ..errors import PruningError
from .positions import Positions

Reduction = Literal["batch", "example"]


def epsilon_gate(
    values: torch.Tensor, epsilon: float, *, reduction: Reduction = "batch", mask: torch.Tensor | None = None
) -> torch.Tensor:
    """S(F) = t(F) · F with t = 1 where max|F| > ε and 0 otherwise (Lin et al. 2020, Section 3.2).

    The paper's t = 1 − ReLU(1 − L · max ReLU(|F| − ε)) is this t but for a band of width 1 / L above ε, in which it
    grows linearly and its gradient is of the size of L; here t has no gradient, so that of F is t times that of S(F).
    The comparison is made in float32 whatever the type of the values.

    Args:
        values: F, `[batch, ..., entries]`.
        epsilon: ε, from 0; at max|F| = ε the gate is closed.
        reduction: "batch" for one gate for the whole batch, as in the ε-ResNet that the paper takes it from;
            "example" for one per example.
        mask: bool or 0/1, `[batch, tokens]` for values `[batch, tokens, ..., entries]`; where it is 0 is padding,
            which does not count.

    Returns:
        The gated values, of the same shape and type.

    Raises:
        PruningError: ε is negative or not finite, the reduction is unknown, or shapes do not fit.
    """
    check_epsilon(epsilon)
    check_reduction(reduction)
    if values.dim() < 2 or not values.numel():
        raise PruningError(f"Values to gate must have a shape [batch, ..., entries], got {tuple(values.shape)}.")
    if mask is not None and values.shape[:2] != mask.shape:
        raise PruningError(
            f"A mask of shape {tuple(mask.shape)} does not fit values of shape {tuple(values.shape)}; it must be"
            " [batch, tokens], as their first two axes."
        )
    rows = largest_in_rows(values.detach().flatten(min(2, values.dim() - 1)))
    positions = Positions(len(values), None if mask is None else mask.bool())
    return where_open(values, is_open(positions.in_groups(rows, reduction).amax(1), epsilon))


def is_open(largest: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Whether max|F| > ε; also where it is no number, which a closed gate would hide."""
    return ~(largest <= epsilon)


def largest_in_rows(values: torch.Tensor) -> torch.Tensor:
    """The largest absolute entry of each row of `[..., entries]`, as `[..., 1]` in float32 (float64 for float64)."""
    largest = torch.linalg.vector_norm(values, torch.inf, dim=-1, keepdim=True)
    return largest.to(torch.promote_types(values.dtype, torch.float32))


def where_open(values: torch.Tensor, opened: torch.Tensor, otherwise: torch.Tensor | None = None) -> torch.Tensor:
    """Values where their gate is open, and zeros or something else where it is closed.

    Args:
        values: `[rows, ..., entries]`.
        opened: bool, `[1, 1]`, or `[examples, 1]` with the rows of one example next to each other.
        otherwise: of a shape that broadcasts to that of the values.
    """
    if len(opened) > 1:
        opened = opened.repeat_interleave(len(values) // len(opened), 0)
    opened = opened.reshape(-1, *(1,) * (values.dim() - 1))
    return torch.where(opened, values, values.new_zeros(()) if otherwise is None else otherwise.to(values.dtype))


def check_epsilon(epsilon: float, name: str = "epsilon") -> float:
    """Returns ε, or raises a PruningError if it is negative or not finite."""
    if not math.isfinite(epsilon) or epsilon < 0:
        raise PruningError(f"{name}={epsilon}: a threshold on absolute values must be finite and at least 0.")
    return float(epsilon)


def check_reduction(reduction: str) -> None:
    """Raises a PruningError where there is no such reduction."""
    if reduction not in get_args(Reduction):
        raise PruningError(
            f"reduction={reduction!r} is unknown; it must be {' or '.join(map(repr, get_args(Reduction)))}."
        )
