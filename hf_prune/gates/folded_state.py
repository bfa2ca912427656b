"""Gates that a model's state dict shows as if they had been multiplied into its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..anatomy import WeightMatrix


def fold_in_state_dict(
    model: nn.Module, matrices: Sequence[WeightMatrix], factors: Callable[[int], torch.Tensor]
) -> list[RemovableHandle]:
    """While gates act on a model, `state_dict()` has the weights that do without them.

    So whatever saves the model saves an ordinary checkpoint that computes what the gated model does. The weights in the
    model, which are trained, stay as they are.

    Args:
        model: the model.
        matrices: the weights that are multiplied.
        factors: gives the factors of matrix number i, of its shape, whenever a state dict is made.

    Returns:
        Handles whose `remove()` ends it.
    """

    def hook_of(index: int, name: str) -> Callable[..., None]:
        @torch.no_grad()
        def hook(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
            weight = state[prefix + name]
            state[prefix + name] = weight.detach() * factors(index).to(weight)

        return hook

    return [
        model.get_submodule(matrix.module).register_state_dict_post_hook(hook_of(index, matrix.name.rpartition(".")[2]))
        for index, matrix in enumerate(matrices)
    ]
