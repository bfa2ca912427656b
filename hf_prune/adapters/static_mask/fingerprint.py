"""By what a mask knows the weights that it was made for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from ...anatomy import WeightMatrix

_SAMPLE = 1 << 18


def fingerprint(matrices: Sequence[WeightMatrix]) -> str:
    """Two SHA-256 of the matrices' names, shapes and values, the same on every device.

    Values are rounded to bfloat16, and for the second one to float16 before, so that a model that is loaded in half
    precision is the same one (`same_weights`); of a matrix of more than 2¹⁸ weights every n-th counts, so that a large
    model is read in a moment. A training changes far more than these leave out.
    """
    digests = {dtype: hashlib.sha256() for dtype in (torch.bfloat16, torch.float16)}
    for matrix in matrices:
        values = matrix.parameter.detach().flatten()
        sample = values[:: -(-values.numel() // _SAMPLE)]
        for dtype, digest in digests.items():
            rounded = sample.to(dtype).to(torch.bfloat16)
            digest.update(f"{matrix.name} {tuple(matrix.parameter.shape)}".encode())
            digest.update(rounded.view(torch.int16).cpu().numpy().tobytes())
    return "-".join(digest.hexdigest() for digest in digests.values())


def same_weights(found: str, known: str) -> bool:
    """Whether two fingerprints are of the same weights.

    Those of float16 and those of bfloat16 are different ones; both are the same as those in float32.
    """
    return not set(found.split("-")).isdisjoint(known.split("-"))
