"""Where the zeros of a model pruned weight by weight are: by layer and by kind of matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from ..anatomy import all_matrices, matrix_name
from ..errors import PruningError
from .alike import check_masks
from .number_text import count_text, share_text
from .tables import Row, markdown_table

OUTSIDE = "outside of the layers"

SPARSITY_COLUMNS = ("weights", "removed", "sparsity")


@dataclass(frozen=True)
class MatrixSparsity:
    """How many weights of a matrix are removed.

    Attributes:
        name: of the parameter.
        weights: its entries.
        removed: those that are removed.
    """

    name: str
    weights: int
    removed: int

    @classmethod
    def of(cls, name: str, kept: torch.Tensor) -> Self:
        """Of a mask, or of a matrix whose zeros are removed."""
        return cls(name, kept.numel(), kept.numel() - int(kept.count_nonzero()))

    @property
    def sparsity(self) -> float:
        """The share that is removed."""
        return self.removed / self.weights


def matrix_sparsity(source: nn.Module | Mapping[str, torch.Tensor]) -> tuple[MatrixSparsity, ...]:
    """The sparsity of every matrix.

    Args:
        source: masks by parameter name, True where the weight is kept; or a model, of which the zeros are counted in
            every weight matrix: projections, all embeddings, experts and task heads, tied ones once.

    Raises:
        PruningError: there are no matrices, or a mask is not a bool tensor.
    """
    if isinstance(source, nn.Module):
        kept = {matrix.name: matrix.parameter.detach() for matrix in all_matrices(source)}
    else:
        check_masks(source)
        kept = dict(source)
    rows = (MatrixSparsity.of(name, values) for name, values in kept.items())
    found = tuple(row for row in rows if row.weights)
    if not found:
        what = type(source).__name__ if isinstance(source, nn.Module) else "An empty set of masks"
        raise PruningError(f"{what} has no matrices to count zeros in; pass a model or its masks by parameter name.")
    return found


def sparsity_table(source: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """Two Markdown tables, by kind of matrix and by layer, each with the total in its last row.

    Args:
        source: masks or a model, as for `matrix_sparsity`.

    Raises:
        PruningError: as `matrix_sparsity`.
    """
    rows = matrix_sparsity(source)
    total = sparsity_row("total", rows)
    by_kind = grouped_rows(rows, lambda row: f"`{matrix_name(row.name).kind}`")
    by_layer = grouped_rows(rows, lambda row: f"`{layer}`" if (layer := matrix_name(row.name).layer) else OUTSIDE)
    tables = [("matrix", by_kind), ("layer", by_layer)]
    return "\n\n".join(markdown_table((name, *SPARSITY_COLUMNS), [*lines, total]) for name, lines in tables)


def grouped_rows(rows: Iterable[MatrixSparsity], key: Callable[[MatrixSparsity], str]) -> list[Row]:
    """One row per group of matrices: (name, weights, removed, sparsity)."""
    groups: dict[str, list[MatrixSparsity]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return [sparsity_row(name, members) for name, members in groups.items()]


def sparsity_row(name: str, members: Sequence[MatrixSparsity]) -> Row:
    """Matrices together as (name, weights, removed, sparsity)."""
    weights, removed = sum(row.weights for row in members), sum(row.removed for row in members)
    return name, count_text(weights), count_text(removed), share_text(removed, weights)
