"""How important heads are by the gradients of their gates (Michel et al. 2019, "Are Sixteen Heads Really Better than
One?", section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def head_importance(totals: Sequence[torch.Tensor], examples: int, normalize: bool = True) -> list[torch.Tensor]:
    """I_h = mean over examples of |∂L(x)/∂gate_h|, and of each layer the vector of length one, as in the paper.

    Args:
        totals: per attention block Σ |∂L(x)/∂gate_h| over examples, `[heads]`.
        examples: how many they are.
        normalize: divide each block's scores by their ℓ2 norm, so that layers with large gradients do not keep all of
            their heads. A block without any gradient scores 0.

    Returns:
        One float64 tensor per block.
    """
    means = [total.double() / max(1, examples) for total in totals]
    if not normalize:
        return means
    norms = [torch.linalg.vector_norm(mean) for mean in means]
    return [mean / norm if norm > 0 else mean for mean, norm in zip(means, norms, strict=True)]
