"""Turns a model's own batch loss into the sum of its per-example losses, whatever the task head.

Task heads average: over the batch, over valid tokens, over answer positions that are not ignored, and some add
several such terms. Per-example gradients need each example's own loss (what the model would report for a batch of
that example alone), so the averaging loss functions are intercepted while the model runs and averaged per example.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import PruningError
from ..rows import IGNORED

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
_CTC = inspect.signature(functional.ctc_loss)


class PerExampleLoss(TorchFunctionMode):
    """While active, averaging losses return the sum over examples of each example's own average.

    Which example a value belongs to follows from the labels where they are those of tokens: a language model may
    compare them in full, shifted by one, or only where there is no padding or a label. Other losses have equally many
    values for every example, in the order of the examples.

    Args:
        examples: number of examples in the batch.
        labels: the batch's labels.
        valid: the positions that are not padding, bool `[examples, length]`.

    Attributes:
        terms: for each intercepted loss the per-example values, `[examples]`.
    """

    def __init__(self, examples: int, labels: torch.Tensor | None = None, valid: torch.Tensor | None = None) -> None:
        super().__init__()
        self.examples = examples
        self.terms: list[torch.Tensor] = []
        self._tokens = valid.sum(1) if valid is not None else None
        token_labels = labels if labels is not None and labels.dim() == 2 and len(labels) == examples else None
        self._views = list(_label_views(token_labels, valid)) if token_labels is not None else []
        self._positions = token_labels.numel() if token_labels is not None else 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.ctc_loss:
            return self._alignment(*args, **kwargs)
        signature = _AVERAGING_LOSSES.get(func)
        if signature is None:
            return func(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.arguments["reduction"] != "mean":
            return func(*args, **kwargs)
        bound.arguments["reduction"] = "none"
        values = func(*bound.args, **bound.kwargs)
        return self._add(self._average(values, bound.arguments["target"], _weights(func, bound.arguments, values)))

    def _add(self, term: torch.Tensor) -> torch.Tensor:
        self.terms.append(term)
        return term.sum()

    def _alignment(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """CTC has a value for each example already; its mean divides them by the length of their targets."""
        bound = _CTC.bind(*args, **kwargs)
        bound.apply_defaults()
        reduction, bound.arguments["reduction"] = bound.arguments["reduction"], "none"
        values = functional.ctc_loss(*bound.args, **bound.kwargs)
        if reduction == "none":
            return values
        if values.numel() != self.examples:
            raise PruningError(_cannot_be_told_apart(values.numel(), self.examples))
        if reduction == "mean":
            lengths = torch.as_tensor(bound.arguments["target_lengths"]).to(values)
            values = values / lengths.clamp(min=1)
        return self._add(values.reshape(-1))

    def _average(self, values: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Σ values / Σ weights per example, zero where an example has no weight."""
        owner = self._owners(values, target).to(values.device)
        if values.element_size() < 4:  # half precision would stop counting tokens at 256 or 2,048
            values, weights = values.float(), weights.float()
        total = values.new_zeros(self.examples).index_add(0, owner, values.reshape(-1))
        weight = weights.new_zeros(self.examples).index_add(0, owner, weights.reshape(-1))
        return torch.where(weight > 0, total / weight.clamp(min=torch.finfo(weight.dtype).tiny), 0.0)

    def _owners(self, values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The example that each value belongs to, `[values]`."""
        for labels, owner in self._views:
            if labels.numel() == target.numel() == values.numel() and bool((labels == target.reshape(-1)).all()):
                return owner
        number = values.numel()
        by_row = torch.arange(self.examples).repeat_interleave(number // self.examples)
        even = number % self.examples == 0 and number > 0
        if values.dim() == 1 and self._tokens is not None and number == int(self._tokens.sum()):
            by_token = torch.arange(self.examples).repeat_interleave(self._tokens.cpu())
            if not even or torch.equal(by_row, by_token):
                return by_token
        elif even and not self._are_some_tokens(number, target):
            return by_row
        raise PruningError(_cannot_be_told_apart(number, self.examples))

    def _are_some_tokens(self, number: int, target: torch.Tensor) -> bool:
        """Whether values are of a choice of tokens: then examples have unlike numbers of them, which are not known."""
        classes = bool(self._views) and not target.is_floating_point()
        return classes and self.examples < number < self._positions - self.examples


def _label_views(labels: torch.Tensor, valid: torch.Tensor | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The ways in which heads hand labels `[examples, length]` to their loss, flattened, with the owner of each."""
    owners = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    everything = torch.ones_like(labels, dtype=torch.bool)
    chosen = [everything] if valid is None or valid.shape != labels.shape else [everything, valid.to(labels.device)]
    for positions in (*chosen, labels != IGNORED):
        yield labels[positions], owners[positions]
        yield labels[:, 1:][positions[:, 1:]], owners[:, 1:][positions[:, 1:]]
    yield functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten(), owners.flatten()


def _cannot_be_told_apart(values: int, examples: int) -> str:
    return (
        f"The model computes its loss on {values} values for a batch of {examples} examples, so they cannot be told"
        " apart. Use a calibration batch size of 1, or scores that need no per-example gradients"
        " (FisherPruningConfig(importance='magnitude'))."
    )


def _weights(func: Any, arguments: dict[str, Any], values: torch.Tensor) -> torch.Tensor:
    """The denominator that the averaging form of the loss would use, per value."""
    target = arguments["target"]
    if func not in (functional.cross_entropy, functional.nll_loss) or target.is_floating_point():
        return torch.ones_like(values)
    counted = target != arguments["ignore_index"]
    if arguments["weight"] is None:
        return counted.to(values.dtype)
    return arguments["weight"][target.where(counted, 0)].to(values.dtype) * counted
