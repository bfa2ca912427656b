"""Lets a `PruningCallback` write into the Trainer's own logs.

A callback gets a log after TensorBoard, W&B and the Trainer's history have got it, and has no other way in. So
`Trainer.log` is wrapped, once per process and when the first `PruningCallback` is made: what trainers with such a
callback log beside the loss has the callback's numbers in it. Other logs and other trainers are not affected.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from transformers import Trainer


class AddsToLogs(ABC):
    """A callback that has numbers for the Trainer's logs."""

    @abstractmethod
    def logs(self) -> dict[str, float]:
        """What is to stand beside the loss."""


def install_log_hook() -> None:
    """Wraps `Trainer.log`, once per process."""
    original: Callable[..., None] = Trainer.log
    if getattr(original, "logs_pruning", False):
        return

    @functools.wraps(original)
    def log(self: Trainer, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, AddsToLogs):
                    _add(logs, callback.logs())
        original(self, logs, *args, **kwargs)

    log.logs_pruning = True  # type: ignore[attr-defined]
    Trainer.log = log


def _add(logs: dict[str, float], numbers: dict[str, float]) -> None:
    """Two callbacks' numbers do not replace each other: "sparsity" and "sparsity_2"."""
    for name, number in numbers.items():
        places = (f"{name}_{place}" if place > 1 else name for place in itertools.count(1))
        logs[next(place for place in places if place not in logs)] = number
