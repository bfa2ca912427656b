"""What several processes agree on: the all-reduce beside the calibration data, for what is learnt in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed

from .errors import PruningError

T = TypeVar("T")


def process_count() -> int:
    """How many processes train together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def process_rank() -> int:
    """Which of them this one is, from 0."""
    return torch.distributed.get_rank() if process_count() > 1 else 0


def add_up(tensors: Iterable[torch.Tensor]) -> None:
    """Replaces each tensor by its sum over all processes; every process must call it with the same tensors."""
    if process_count() > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def average(tensors: Iterable[torch.Tensor]) -> None:
    """Replaces each tensor by its mean over all processes; every process must call it with the same tensors."""
    count = process_count()
    if count == 1:
        return
    summed = list(tensors)
    add_up(summed)
    for tensor in summed:
        tensor.div_(count)


def take_from_first(tensors: Iterable[torch.Tensor]) -> None:
    """Replaces each tensor by the first process's; every process must call it with tensors of the same shapes."""
    if process_count() > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


def fail_together(action: Callable[[], T]) -> T:
    """What `action` returns; if it fails on one process, all processes fail instead of waiting for each other.

    Raises:
        PruningError: on another process something was raised; what was raised here comes out as it is.
    """
    count = process_count()
    if count == 1:
        return action()
    error: Exception | None = None
    try:
        value = action()
    except Exception as failure:
        error = failure
    messages: list[str | None] = [None] * count
    torch.distributed.all_gather_object(messages, None if error is None else _text(error))
    if error is not None:
        raise error
    for rank, message in enumerate(messages):
        if message is not None:
            raise PruningError(f"Process {rank} failed: {message}")
    return value


def is_first_process() -> bool:
    """Whether this is the process that writes."""
    return process_rank() == 0


def told_by_first(value: Any) -> Any:
    """The first process's value, on every process."""
    box = [value]
    if process_count() > 1:
        torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def wait_for_all() -> None:
    """Goes on when every process has come here."""
    if process_count() > 1:
        torch.distributed.barrier()


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, PruningError) else f"{type(error).__name__}: {error}"
