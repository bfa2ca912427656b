"""A linear layer with a mask on its weights, and the straight-through gradient of the mask's scores."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F


def masked_linear(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    kept: torch.Tensor,
    scores: torch.Tensor | None = None,
    *,
    transposed: bool = False,
) -> torch.Tensor:
    """y = x W'ᵀ + b with W' = M ∘ W.

    The scores S do not enter the result; their gradient is straight-through, ∂L/∂S = ∂L/∂W' ∘ W in float32 (Jiang et
    al. 2023), of removed weights, too. W itself gets none. W' is made again where it is needed, not kept.

    Args:
        inputs: x, `[..., inputs]`.
        weight: W, `[outputs, inputs]`, or `[inputs, outputs]` if `transposed`, as Conv1D has it.
        bias: b, `[outputs]`.
        kept: M, bool of the weight's shape.
        scores: S, of the weight's shape in float32; None where nothing is learnt.
        transposed: how the weight is stored.
    """
    result: torch.Tensor = _MaskedLinear.apply(inputs, weight, bias, kept, scores, transposed)
    return result


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        kept: torch.Tensor,
        scores: torch.Tensor | None,
        transposed: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight, kept)
        ctx.transposed = transposed
        ctx.bias_dtype = None if bias is None else bias.dtype
        masked = weight * kept
        return F.linear(inputs, masked.t() if transposed else masked, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight, kept = ctx.saved_tensors
        for_inputs = for_bias = for_scores = None
        rows = gradient.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            masked = (weight * kept).to(gradient.dtype)
            for_inputs = (gradient @ (masked.t() if ctx.transposed else masked)).to(inputs.dtype)
        if ctx.needs_input_grad[2]:
            for_bias = rows.sum(0).to(ctx.bias_dtype)
        if ctx.needs_input_grad[4]:
            columns = inputs.flatten(0, -2).to(gradient.dtype)
            for_weight = columns.t() @ rows if ctx.transposed else rows.t() @ columns
            for_scores = for_weight.float().mul_(weight)
        return for_inputs, None, for_bias, None, for_scores, None
