"""What masks on weight matrices have in common, wherever they are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from ..anatomy import WeightMatrix
from ..errors import PruningError
from ..shards import Shards, count_true, gathered, shards_of


class MatrixMasks(ABC):
    """One mask per weight matrix; with FSDP2 on the rows of it that this process holds.

    Attributes:
        matrices: the masked matrices.
    """

    matrices: tuple[WeightMatrix, ...]

    @property
    @abstractmethod
    def masks(self) -> list[torch.Tensor]:
        """One bool tensor per matrix, of its values' shape, True where a weight stays; change them with `set`."""

    @cached_property
    def shards(self) -> Shards:
        """The processes that share the matrices."""
        return shards_of((matrix.name, matrix.parameter) for matrix in self.matrices)

    def whole(self, index: int) -> torch.Tensor:
        """The mask of a whole matrix, of the parameter's shape; of sharded ones every process must ask for it."""
        return gathered(self.masks[index], self.matrices[index].parameter)

    @property
    def sparsity(self) -> float:
        """The fraction of all weights in the matrices that is removed."""
        return self.removed_count / self.weight_count

    @property
    def weight_count(self) -> int:
        """How many weights the matrices have."""
        return sum(matrix.parameter.numel() for matrix in self.matrices)

    @property
    def removed_count(self) -> int:
        """How many weights are removed."""
        masks = self.masks
        if not masks:
            return 0
        return self.weight_count - int(self.shards.add_up(count_true(masks).sum()))

    @abstractmethod
    def set(self, masks: Sequence[torch.Tensor]) -> None:
        """Removes and brings back weights, so that these masks hold.

        Args:
            masks: one bool tensor per matrix, of its values' shape.

        Raises:
            PruningError: their number, a shape or a type does not fit.
        """

    @abstractmethod
    def raw(self, index: int) -> torch.Tensor:
        """A matrix's weights with the removed ones in their places, as a tensor of its own."""

    @abstractmethod
    def apply(self) -> None:
        """Sets removed weights to zero again; after an optimizer's step, whose momentum and decay move them, too."""

    @abstractmethod
    def delete(self) -> None:
        """Forgets what was removed and frees all weights: those that are zero are zero, and learn again."""

    @abstractmethod
    def remove(self, *, restore: bool = True) -> None:
        """Takes the masks off.

        Args:
            restore: bring removed weights back; otherwise they stay zero.
        """

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """What continuing takes, beside the weights, as tensors on the CPU whose names begin with the matrices'."""

    @abstractmethod
    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            PruningError: tensors do not fit the matrices.
        """


def check_masks(matrices: Sequence[WeightMatrix], masks: Sequence[torch.Tensor]) -> None:
    """Raises a PruningError where masks do not fit the matrices in number, shape or type."""
    check_shapes(masks, [(matrix.name, tuple(matrix.values.shape)) for matrix in matrices], "matrices")


def check_shapes(masks: Sequence[torch.Tensor], named: Sequence[tuple[str, tuple[int, ...]]], things: str) -> None:
    """Raises a PruningError where masks do not fit what they are for in number, shape or type.

    Args:
        masks: one bool tensor for each thing.
        named: the name of each thing, and the shape that its mask has to have.
        things: what to call them.
    """
    if len(masks) != len(named):
        raise PruningError(f"Got {len(masks)} masks for {len(named)} {things}.")
    for (name, shape), mask in zip(named, masks, strict=True):
        if mask.dtype != torch.bool or mask.shape != shape:
            raise PruningError(
                f"{name}: the mask must be a bool tensor of shape {shape}, got"
                f" {str(mask.dtype).removeprefix('torch.')} of {tuple(mask.shape)}."
            )
