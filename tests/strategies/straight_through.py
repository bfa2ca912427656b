"""Static Model Pruning as its paper writes it down, with autograd doing all of it."""

from __future__ import annotations

from typing import Any

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from hf_prune.anatomy.matrices import choose_matrices


class _Mask(torch.autograd.Function):
    """The highest scores' places; its gradient is passed straight through."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, keep: int) -> torch.Tensor:
        mask = torch.zeros(scores.numel())
        mask[scores.flatten().argsort(descending=True, stable=True)[:keep]] = 1
        return mask.view_as(scores)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def learnt_scores(
    model: PreTrainedModel,
    batches: list[dict[str, torch.Tensor]],
    *,
    sparsity: float,
    begin: int,
    end: int,
    rate: float,
    regularization: float = 400.0,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Scores and masks by name after one step per batch, local masking and the cubic schedule; nothing else learns."""
    matrices = choose_matrices(model, lambda every, default: set(default), only_layers=True)
    weights = {matrix.name: matrix.parameter.detach().clone() for matrix in matrices}
    scores = {name: torch.zeros_like(weight, requires_grad=True) for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(scores.values(), lr=rate, weight_decay=0.0)
    steps = len(batches)

    def sizes(step: int) -> dict[str, int]:
        now = sparsity - sparsity * (1 - min(max(step - begin, 0) / (end - begin), 1)) ** 3
        return {name: weight.numel() - round(now * weight.numel()) for name, weight in weights.items()}

    for step, batch in enumerate(batches):
        keep = sizes(step)
        masked = {name: weights[name] * _Mask.apply(scores[name], keep[name]) for name in weights}
        factor = regularization * (1 - (1 - (step + 1) / steps) ** 3)
        penalty = torch.stack([score.sigmoid().mean() for score in scores.values()]).mean()
        optimizer.zero_grad()
        (functional_call(model, masked, kwargs=batch).loss + factor * penalty).backward()
        torch.nn.utils.clip_grad_norm_(scores.values(), 1.0)
        optimizer.param_groups[0]["lr"] = rate * (1 - (step + 1) / steps)
        optimizer.step()
    keep = sizes(steps)
    return (
        {name: score.detach() for name, score in scores.items()},
        {name: _Mask.apply(score.detach(), keep[name]).bool() for name, score in scores.items()},
    )
