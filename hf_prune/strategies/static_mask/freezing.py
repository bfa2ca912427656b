"""Holding a base model still while a mask on it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ...anatomy import inner_model
from ...shards import put_shards_back


class Stillness:
    """Parameters that do not learn, until `end`.

    Args:
        model: its base model is frozen, the task head is as it was; below PEFT's adapters it is frozen already.
        masked: parameters whose gradients are computed, for the scores, but never kept: so no optimizer moves them,
            not even one that holds them.
    """

    def __init__(self, model: Any, masked: Iterable[nn.Parameter] = ()) -> None:
        self._masked = list(masked)
        self._thaw = freeze_before_optimizer(model, self._masked)
        for parameter in self._masked:
            parameter.requires_grad_(True)
        self._handles: list[RemovableHandle] = []

    def drop_as_they_come(self) -> None:
        """From now on a gradient is dropped when it has been accumulated, and hooks before this one have seen it."""
        self._handles = [parameter.register_post_accumulate_grad_hook(_drop) for parameter in self._masked]

    def drop_gradients(self) -> None:
        """For gradients that DDP has put back."""
        for parameter in self._masked:
            _drop(parameter)

    def end(self) -> None:
        """Every parameter learns or not as it did before."""
        for handle in self._handles:
            handle.remove()
        self.drop_gradients()
        self._thaw()
        self._handles, self._masked = [], []


def freeze_before_optimizer(model: Any, matrices: Iterable[nn.Parameter]) -> Callable[[], None]:
    """Freezes the base model and all masked matrices, so that neither an optimizer nor DDP gets to know of them.

    Returns:
        What undoes it.
    """
    meant = {id(parameter) for parameter in (*_base(model), *matrices)}
    before = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in meant:
            before[name] = parameter.requires_grad
            parameter.requires_grad_(False)

    def undo() -> None:
        put_shards_back(model)
        for name, parameter in model.named_parameters():  # FSDP2 may have put others in their places
            if name in before:
                parameter.requires_grad_(before[name])
        before.clear()

    return undo


def _base(model: Any) -> list[nn.Parameter]:
    """What must not learn: the model below the task head."""
    if hasattr(model, "get_base_model"):
        return []
    return list(inner_model(model).base_model.parameters())


def _drop(parameter: nn.Parameter) -> None:
    parameter.grad = None
