"""A differentiable choice of exactly k units: Gumbel noise, top k, and a straight-through gradient."""

from __future__ import annotations

import torch

# A share that is nearly one leaves nearly nothing for the next draw, but not a logarithm of zero.
_LEFT = 1e-6


def gumbel_noise(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Independent samples of the standard Gumbel distribution, on the CPU."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    return -torch.log(-torch.log(uniform.clamp(min=tiny, max=1 - 1e-16)))


def choose_top(logits: torch.Tensor, keep: int, temperature: float = 1.0) -> torch.Tensor:
    """A mask of the `keep` largest logits whose gradient is that of `relaxed_top` (straight-through).

    With Gumbel noise on the logits, the set that is chosen is one of sequential draws without replacement, each with
    probabilities softmax(logits) over what is left. So is the set of distinct units in draws *with* replacement until
    there are `keep` of them, which is how the authors of single-shot meta-pruning make Gumbel-softmax (section 3.3)
    keep a given number.

    Args:
        logits: `[units]`.
        keep: how many ones.
        temperature: of the relaxation; the mask does not depend on it.

    Returns:
        `[units]`, exactly 0 or 1.
    """
    relaxed = relaxed_top(logits, keep, temperature)
    hard = torch.zeros_like(relaxed).scatter(0, logits.topk(keep).indices, 1.0)
    return hard + (relaxed - relaxed.detach())  # the difference is exactly zero


def relaxed_top(logits: torch.Tensor, keep: int, temperature: float = 1.0) -> torch.Tensor:
    """The relaxed top-k of Xie and Ermon (2019, "Reparameterizable Subset Sampling via Continuous Relaxations").

    `keep` softmaxes one after the other, each over what the ones before it have left; their sum.

    Args:
        logits: `[units]`.
        keep: how many softmaxes.
        temperature: the lower, the closer to a mask.

    Returns:
        `[units]`, non-negative, with the sum `keep`.
    """
    total = torch.zeros_like(logits)
    for _ in range(keep):
        share = torch.softmax(logits / temperature, dim=0)
        total = total + share
        logits = logits + torch.log((1 - share).clamp(min=_LEFT))
    return total
