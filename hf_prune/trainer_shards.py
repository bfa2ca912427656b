"""Checkpoints of sharded models: a Trainer has one process ask for a callback's state, which takes all processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .errors import PruningError
from .shards import has_shards
from .strategies.training import TrainingPruner


class CollectedState:
    """A pruner's state for the checkpoint that is written next."""

    def __init__(self) -> None:
        self._collected: tuple[int, Mapping[str, torch.Tensor]] | None = None

    def collect(self, pruner: TrainingPruner | None) -> None:
        """On every process, before a checkpoint: brings the state of a sharded model together on the first one."""
        if pruner is not None and has_shards(pruner.model):
            self._collected = pruner.step, pruner.state()

    def take(self, pruner: TrainingPruner) -> Mapping[str, torch.Tensor]:
        """The pruner's state, on the process that writes.

        Raises:
            PruningError: that of a sharded model has not been collected, because nobody knew that it would be needed.
        """
        if not has_shards(pruner.model):
            return pruner.state()
        step, tensors = self._collected or (None, {})
        self._collected = None
        if step != pruner.step:
            raise PruningError(
                f"The Trainer writes a checkpoint at step {pruner.step} of which PruningCallback has not known: another"
                " callback has asked for it afterwards. Add PruningCallback last."
            )
        return tensors
