"""Bool masks as packed bits: one bit per weight, eight of them in a byte, the first one highest."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch

from ..errors import PruningError


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """A bool mask of any shape as a uint8 tensor of ⌈n / 8⌉ bytes, on the CPU, in row-major order."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))


def unpack_mask(bits: torch.Tensor, shape: Sequence[int], name: str = "mask") -> torch.Tensor:
    """The inverse of `pack_mask`.

    Args:
        bits: uint8 `[⌈n / 8⌉]`, from a file: it is checked before anything is allocated.
        shape: of the mask, from the model.
        name: what to call it in errors.

    Raises:
        PruningError: another type or length than the shape needs, or padding bits that are set.
    """
    count = prod(shape)
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
        raise PruningError(
            f"{name}: a mask of shape {tuple(shape)} takes {-(-count // 8)} bytes, got {tuple(bits.shape)} of"
            f" {str(bits.dtype).removeprefix('torch.')}."
        )
    flags = np.unpackbits(bits.cpu().numpy())
    if flags[count:].any():
        raise PruningError(f"{name}: bits after the last weight are set; the file is damaged.")
    return torch.from_numpy(flags[:count].astype(bool)).reshape(tuple(shape))
