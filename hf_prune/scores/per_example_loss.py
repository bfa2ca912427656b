"""Turns a model's own batch loss into the sum of its per-example losses, whatever the task head.

Task heads average: over the batch, over valid tokens, over answer positions that are not ignored, and some add
several such terms. Per-example gradients need each example's own loss (what the model would report for a batch of
that example alone), so the averaging loss functions are intercepted while the model runs and averaged per example.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import PruningError

_AVERAGING_LOSSES: dict[Callable[..., torch.Tensor], inspect.Signature] = {
    function: inspect.signature(function)
    for function in (
        functional.cross_entropy,
        functional.nll_loss,
        functional.mse_loss,
        functional.l1_loss,
        functional.smooth_l1_loss,
        functional.huber_loss,
        functional.binary_cross_entropy,
        functional.binary_cross_entropy_with_logits,
    )
}


class PerExampleLoss(TorchFunctionMode):
    """While active, averaging losses return the sum over examples of each example's own average.

    Args:
        examples: number of examples in the batch.
        tokens: valid tokens of every example, `[examples]`; used where a model computes its loss on the valid
            positions only.

    Attributes:
        terms: for each intercepted loss the per-example values, `[examples]`.
    """

    def __init__(self, examples: int, tokens: torch.Tensor) -> None:
        super().__init__()
        self.examples = examples
        self.tokens = tokens
        self.terms: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        signature = _AVERAGING_LOSSES.get(func)
        if signature is None:
            return func(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.arguments["reduction"] != "mean":
            return func(*args, **kwargs)
        bound.arguments["reduction"] = "none"
        values = func(*bound.args, **bound.kwargs)
        term = self._average(values, _weights(func, bound.arguments, values))
        self.terms.append(term)
        return term.sum()

    def _average(self, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Σ values / Σ weights per example, zero where an example has no weight."""
        # A flat list with a value for every valid position comes first: its length may be a multiple of the batch too.
        by_token = values.dim() == 1 and values.numel() == int(self.tokens.sum())
        values, weights = values.reshape(-1), weights.reshape(-1)
        if not by_token and values.numel() % self.examples == 0 and values.numel() >= self.examples:
            total = values.reshape(self.examples, -1).sum(1)
            weight = weights.reshape(self.examples, -1).sum(1)
        elif by_token:
            owner = torch.arange(self.examples, device=values.device).repeat_interleave(self.tokens.to(values.device))
            total = values.new_zeros(self.examples).index_add(0, owner, values)
            weight = weights.new_zeros(self.examples).index_add(0, owner, weights)
        else:
            raise PruningError(
                f"The model computes its loss on {values.numel()} values for a batch of {self.examples} examples, so"
                " they cannot be told apart. Use a calibration batch size of 1, or scores that need no per-example"
                " gradients (importance='magnitude')."
            )
        return torch.where(weight > 0, total / weight.clamp(min=torch.finfo(weight.dtype).tiny), 0.0)


def _weights(func: Any, arguments: dict[str, Any], values: torch.Tensor) -> torch.Tensor:
    """The denominator that the averaging form of the loss would use, per value."""
    target = arguments["target"]
    if func not in (functional.cross_entropy, functional.nll_loss) or target.is_floating_point():
        return torch.ones_like(values)
    counted = target != arguments["ignore_index"]
    if arguments["weight"] is None:
        return counted.to(values.dtype)
    return arguments["weight"][target.where(counted, 0)].to(values.dtype) * counted
