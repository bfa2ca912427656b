"""How important single weights are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch

from ..gates import MatrixMasks
from ..shards import rows_of


class WeightScores(ABC):
    """Where the scores of single weights come from; the lowest ones are removed.

    Attributes:
        watch: gets a matrix's number and the loss's gradient with respect to its masked weights whenever there is one;
            None where nothing is learnt from gradients.
    """

    watch: Callable[[int, torch.Tensor], None] | None = None

    @abstractmethod
    def scores(self, masks: MatrixMasks) -> list[torch.Tensor]:
        """One tensor per masked matrix, of its values' shape."""

    def learn(self, masks: MatrixMasks, rate: float, penalty: float) -> None:
        """Follows a step of the weights' optimizer; what is not learnt does nothing.

        Args:
            masks: the masks that hold.
            rate: what is left of the learning rate, from 1 to 0.
            penalty: factor of the scores' regulariser.
        """
        del masks, rate, penalty

    def state(self) -> dict[str, torch.Tensor]:
        """What continuing takes, as tensors."""
        return {}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        del tensors


class MagnitudeScores(WeightScores):
    """|w|, of removed weights as they were when they were removed (Gordon et al. 2020)."""

    def scores(self, masks: MatrixMasks) -> list[torch.Tensor]:
        """One tensor per masked matrix."""
        return [masks.raw(index).abs_() for index in range(len(masks.matrices))]


class RandomScores(WeightScores):
    """Numbers that mean nothing, the same at every step: sparser masks remove what denser ones did, and more.

    Args:
        seed: of a generator on the CPU for each matrix, so that every process and every device draws the same; of
            sharded matrices it uses its own rows.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def scores(self, masks: MatrixMasks) -> list[torch.Tensor]:
        """One tensor per masked matrix."""
        found = []
        for index, matrix in enumerate(masks.matrices):
            generator = torch.Generator().manual_seed((self._seed + 7919 * index) % 2**63)
            drawn = torch.rand(matrix.parameter.shape, generator=generator)
            found.append(rows_of(drawn, matrix.parameter).to(matrix.parameter.device))
        return found
