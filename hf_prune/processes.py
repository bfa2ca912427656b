"""What several processes agree on: the all-reduce beside the calibration data, for what is learnt in training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed


def process_count() -> int:
    """How many processes train together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


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


def is_first_process() -> bool:
    """Whether this is the process that writes."""
    return process_count() == 1 or torch.distributed.get_rank() == 0


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
