"""Learning rates that fall from layer to layer, for whatever optimizer a training loop has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from ...anatomy import ModelAnatomy


def layer_factors(model: PreTrainedModel, anatomy: ModelAnatomy, decay: float) -> dict[str, float]:
    """What each parameter's learning rate is multiplied by, where that is not 1.

    The last layer of a stack learns at the full rate, the layer below it at `decay` times that, and so on; tables of
    embeddings, with the norm beside them, are below the first layer (layer-wise decay as in Clark et al. 2020).
    """
    stacks = {block.stack: len(_layers(model, block.stack)) for block in anatomy.blocks}
    below = decay ** max(stacks.values(), default=0)
    factors = {f"{path}.{name}".lstrip("."): below for path, name in _embeddings(model, stacks)}
    for stack, count in stacks.items():
        for index, layer in enumerate(_layers(model, stack)):
            for name, _ in layer.named_parameters():
                factors[f"{stack}.{index}.{name}"] = decay ** (count - 1 - index)
    return {name: factor for name, factor in factors.items() if factor != 1}


class SlowerLayers:
    """Scales an optimizer's steps parameter by parameter.

    A step is taken back in part: w ← w₀ + f · (w − w₀). For every optimizer whose steps are proportional to its
    learning rate, decoupled weight decay among them, that is a learning rate of f times the optimizer's; and neither
    parameter groups nor schedulers have to know. While the optimizer makes its step, there is a copy of these
    parameters.

    Args:
        model: whose parameters are meant.
        factors: f by name.
    """

    def __init__(self, model: nn.Module, factors: Mapping[str, float]) -> None:
        named = dict(model.named_parameters())
        self._factors: dict[torch.Tensor, float] = {
            named[name]: factor for name, factor in factors.items() if name in named
        }
        self._before: dict[torch.Tensor, torch.Tensor] = {}

    def factor(self, parameter: torch.Tensor) -> float:
        """What a parameter's learning rate is multiplied by."""
        return self._factors.get(parameter, 1.0)

    def before_step(self) -> None:
        """Remembers what the optimizer is about to change."""
        self._before = {item: item.detach().clone() for item in self._factors if item.grad is not None}

    @torch.no_grad()
    def after_step(self) -> None:
        """Takes each step back in part."""
        for parameter, before in self._before.items():
            parameter.copy_(before.lerp_(parameter, self._factors[parameter]))
        self._before = {}


def _layers(model: PreTrainedModel, stack: str) -> nn.ModuleList:
    layers: nn.ModuleList = model.get_submodule(stack)
    return layers


def _embeddings(model: PreTrainedModel, stacks: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Parameters of tables, and of modules that hold tables and no layers, as (path of the module, name in it)."""
    for path, module in model.named_modules():
        holds_table = any(isinstance(child, nn.Embedding) for child in module.children())
        holds_layers = any(f"{stack}.".startswith(f"{path}.".lstrip(".")) for stack in stacks)
        if isinstance(module, nn.Embedding) or (holds_table and not holds_layers):
            yield from ((path, name) for name, _ in module.named_parameters())
