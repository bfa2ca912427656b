"""The l1 term on the weights of gated sublayers."""

from __future__ import annotations

import torch
from torch.nn.functional import softshrink


@torch.no_grad()
def shrink(weight: torch.Tensor, amount: float) -> None:
    """Moves every entry of a weight towards zero by `amount`, but not past it.

    This is the proximal step of l1 · Σ|w| for a step size η with `amount` = η · l1. The paper (Lin et al. 2020,
    section 3.4) leaves its term undefined; as a gradient it would be lost in Adam's division by the gradient's size,
    or, where a closed gate leaves no other gradient, be as strong as any.
    """
    weight.copy_(softshrink(weight, amount))
