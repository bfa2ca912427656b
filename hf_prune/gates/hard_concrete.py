"""Hard-concrete gates (Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization").

A gate is drawn from a distribution on [0, 1] that has probability of its own at 0 and at 1, and whose samples are
differentiable in its one parameter log α. So what it costs to keep a unit, the probability that its gate is not zero,
can be learnt with gradients.
"""

from __future__ import annotations

import math

import torch

# The interval that samples are stretched to before they are clipped to [0, 1] (Louizos et al. 2018, section 4).
LOW, HIGH = -0.1, 1.1
TEMPERATURE = 2 / 3


def hard_concrete(
    log_alpha: torch.Tensor, noise: torch.Tensor | None = None, *, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """Gates in [0, 1].

    Args:
        log_alpha: the gates' parameters, of any shape.
        noise: drawn evenly from (0, 1), of the same shape: samples for training (Eq. 10 and 11). Without it the gates
            that a trained model has (Eq. 13), which no noise and no temperature enter.
        temperature: β; the lower, the more of the samples are exactly 0 or 1.

    Returns:
        `min(1, max(0, s · (1.1 + 0.1) − 0.1))`, where s = σ((log u − log(1 − u) + log α) / β) or, without noise,
        s = σ(log α).
    """
    if noise is not None:
        log_alpha = (noise.log() - torch.log1p(-noise) + log_alpha) / temperature
    return (log_alpha.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(log_alpha: torch.Tensor, *, temperature: float = TEMPERATURE) -> torch.Tensor:
    """The probability that a sampled gate is not zero (Louizos et al. 2018, Eq. 12): σ(log α − β · log(0.1 / 1.1))."""
    return torch.sigmoid(log_alpha - temperature * math.log(-LOW / HIGH))


def gate_noise(like: torch.Tensor) -> torch.Tensor:
    """Noise for `hard_concrete`, from torch's own generator, as dropout's; never 0 or 1, whose logarithms are none."""
    edge = torch.finfo(like.dtype).eps
    return torch.rand_like(like).clamp_(edge, 1 - edge)
