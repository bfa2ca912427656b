"""How much a layer does: by how little its output resembles its input (Men et al. 2024, "ShortGPT")."""

from __future__ import annotations

import torch
from torch.nn import functional


def block_influence(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """1 − cos(X, Y) at each position: what Block Influence (Men et al. 2024, Eq. 1) is the mean of.

    Args:
        inputs: hidden states that enter a layer, `[..., hidden]`.
        outputs: those that leave it, of the same shape.

    Returns:
        float64 `[...]`, from 0 (the same direction) to 2.
    """
    return 1 - functional.cosine_similarity(inputs.double(), outputs.double(), dim=-1)
