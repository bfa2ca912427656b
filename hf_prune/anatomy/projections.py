"""The linear maps that blocks consist of: which rows or columns belong to which unit, and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

# NumPy rather than PyTorch: models are often built in a context that would put tensors on the meta device.
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """A stretch of rows (or columns) in which units follow each other.

    Attributes:
        start: first row.
        width: consecutive rows per unit: unit u has `start + u × width` and the following.
    """

    start: int
    width: int


@dataclass(frozen=True)
class Projection:
    """One linear map that belongs to a block.

    Attributes:
        path: path inside the layer: of a module, or of a parameter where `expert` is given.
        axis: 0 where units are rows of the weight (they are produced here), 1 where they are columns (read here).
        parts: where the units' rows or columns are; a fused projection has several parts. What lies outside of all
            parts belongs to no unit (the shared key and value of multi-query attention) and is never cut.
        other: size of the axis that is not cut.
        bias: whether there is a bias.
        transposed: whether the weight is stored with columns first (transformers' `Conv1D`).
        expert: which expert's slice of a parameter with an axis of experts this is; "all" for the rows of all of them,
            one expert after the other.
    """

    path: str
    axis: Literal[0, 1]
    parts: tuple[Part, ...]
    other: int
    bias: bool
    transposed: bool = False
    expert: int | Literal["all"] | None = None

    @property
    def width(self) -> int:
        """Rows or columns per unit."""
        return sum(part.width for part in self.parts)

    @property
    def weights_per_unit(self) -> int:
        """Weight entries that belong to one unit, the bias not counted."""
        return self.width * self.other

    @property
    def parameters_per_unit(self) -> int:
        """Parameters that disappear with one unit (an output projection keeps its bias)."""
        return self.weights_per_unit + (self.width if self.bias and self.axis == 0 else 0)

    def owners(self, units: int, size: int) -> Indices:
        """The unit that each of `size` rows or columns belongs to, −1 for none."""
        return owners(self.parts, units, size)

    def sums_per_unit(self, values: torch.Tensor, units: int) -> torch.Tensor:
        """Sums over the weight entries of each unit.

        Args:
            values: one per entry of the weight, `[rows, columns]`.
            units: how many units the block has.

        Returns:
            Float64 `[units]`, where the values are.
        """
        sums = values.sum(1 - self.axis, dtype=torch.float64)
        owner = torch.from_numpy(self.owners(units, len(sums))).to(sums.device)
        return sums.new_zeros(units).index_add_(0, owner[owner >= 0], sums[owner >= 0])


def owners(parts: Sequence[Part], units: int, size: int) -> Indices:
    """The unit that each of `size` rows belongs to, −1 for none."""
    owner = np.full(size, -1, dtype=np.int64)
    for part in parts:
        owner[part.start : part.start + units * part.width] = np.repeat(np.arange(units), part.width)
    return owner


def kept_indices(owner: Indices, units: Sequence[int]) -> Indices:
    """The rows of `units` and those that belong to no unit, in ascending order."""
    return np.flatnonzero(np.isin(owner, [-1, *units]))


def linear_at(layer: nn.Module, projection: Projection) -> Any:
    """The projection's module inside `layer` (the layer itself or a copy of it): a `Linear` or a `Conv1D`.

    Experts have none; their weights are parts of larger parameters, see `weight_of`.
    """
    module = layer.get_submodule(projection.path)
    assert isinstance(module, (nn.Linear, Conv1D))  # checked when the anatomy was read
    return module


def weight_of(layer: nn.Module, projection: Projection) -> torch.Tensor:
    """The projection's weight `[rows, columns]`, whichever way it is stored; a view of the parameter."""
    return oriented(parameter_of(layer, projection), projection)


def parameter_of(layer: nn.Module, projection: Projection) -> nn.Parameter:
    """The parameter inside `layer` that holds the projection's weight, as it is stored."""
    if projection.expert is not None:
        return layer.get_parameter(projection.path)
    weight: nn.Parameter = linear_at(layer, projection).weight
    return weight


def oriented(values: torch.Tensor, projection: Projection) -> torch.Tensor:
    """What lies over the projection's parameter as `[rows, columns]` over its weight; a view."""
    if projection.expert == "all":
        values = values.flatten(0, -2)
    elif projection.expert is not None:
        values = values[projection.expert]
    return values.T if projection.transposed else values


def stored(weight: torch.Tensor, projection: Projection) -> torch.Tensor:
    """A weight `[rows, columns]` the way that the projection's module stores it."""
    return weight.T.contiguous() if projection.transposed else weight
