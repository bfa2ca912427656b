"""What several processes agree on: the all-reduce beside the calibration data, for what is learnt in training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed


def process_count() -> int:
    """How many processes train together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def average(tensors: Iterable[torch.Tensor]) -> None:
    """Replaces each tensor by its mean over all processes; every process must call it with the same tensors."""
    count = process_count()
    if count == 1:
        return
    for tensor in tensors:
        torch.distributed.all_reduce(tensor)
        tensor.div_(count)


def wait_for_all() -> None:
    """Goes on when every process has come here."""
    if process_count() > 1:
        torch.distributed.barrier()
