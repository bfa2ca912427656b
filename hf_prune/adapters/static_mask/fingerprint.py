"""By what a mask knows the weights that it was made for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from ...anatomy import WeightMatrix

_SAMPLE = 1 << 18


def fingerprint(matrices: Sequence[WeightMatrix]) -> str:
    """The SHA-256 of the matrices' names, shapes and values, the same on every device.

    Values are rounded to bfloat16, so that a model that is loaded in half precision is the same one; of a matrix of
    more than 2¹⁸ weights every n-th counts, so that a large model is read in a moment. A training changes far more
    than these leave out.
    """
    digest = hashlib.sha256()
    for matrix in matrices:
        values = matrix.parameter.detach().flatten()
        sample = values[:: -(-values.numel() // _SAMPLE)].to(torch.bfloat16)
        digest.update(f"{matrix.name} {tuple(matrix.parameter.shape)}".encode())
        digest.update(sample.view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()
