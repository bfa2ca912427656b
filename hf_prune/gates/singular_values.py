"""The largest singular value of a matrix, exactly and by power iteration (Miyato et al. 2018, section 2.1).

One vector is kept per matrix W, the right singular vector v; the left one is Wv / |Wv|. With it |Wv| is the largest
singular value, and never more than it, and what a small error of v costs is of second order.
"""

from __future__ import annotations

import torch


def top_singular_vector(weight: torch.Tensor) -> torch.Tensor:
    """The unit vector that a matrix stretches most, from an eigendecomposition of the smaller of WWᵀ and WᵀW.

    Args:
        weight: `[rows, columns]`.

    Returns:
        `[columns]`; of a matrix of zeros any unit vector.
    """
    if weight.shape[0] < weight.shape[1]:
        return _unit(weight.T @ torch.linalg.eigh(weight @ weight.T).eigenvectors[:, -1])
    return torch.linalg.eigh(weight.T @ weight).eigenvectors[:, -1]


def power_iteration(weight: torch.Tensor, vector: torch.Tensor, iterations: int) -> torch.Tensor:
    """Turns a vector towards the one that the matrix stretches most.

    Args:
        weight: `[rows, columns]`.
        vector: `[columns]`.
        iterations: how often it is multiplied by WᵀW.

    Returns:
        `[columns]`, of length 1. Where all of it is lost (its columns have become zero) it begins anew with equal
        entries, because zero would stay zero.
    """
    for _ in range(iterations):
        vector = _unit(weight.T @ (weight @ vector))
    return vector


def stretch(weight: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """How much longer a matrix makes a vector, a scalar: |Wv| / |v|."""
    return torch.linalg.vector_norm(weight @ vector) / torch.linalg.vector_norm(vector)


def _unit(vector: torch.Tensor) -> torch.Tensor:
    length = torch.linalg.vector_norm(vector)
    return torch.where(length > 0, vector / length, len(vector) ** -0.5)
