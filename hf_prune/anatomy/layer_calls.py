"""How a model calls its layers: recorded from the model itself, so that no modelling code is repeated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class StopForward(Exception):
    """Ends a forward pass whose remainder nobody needs."""


@dataclass
class LayerCall:
    """The arguments of one layer's call, the hidden states left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Calls `layer` the same way on other hidden states and returns the new ones."""
        output = layer(hidden, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


def record_layer_calls(
    model: PreTrainedModel, layers: Sequence[str], batch: Mapping[str, Any]
) -> tuple[torch.Tensor, list[LayerCall]]:
    """Runs a model with its layers skipped, up to the last of them.

    Args:
        model: the model, in evaluation mode.
        layers: paths of its layers, in the order in which they run.
        batch: keyword arguments of `forward`, without labels.

    Returns:
        The hidden states that enter the first layer, `[rows, length, hidden]`, and each layer's call.
    """
    calls: list[LayerCall] = []
    hidden_states: list[torch.Tensor] = []

    def record(hidden: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = kwargs.pop("hidden_states") if hidden is None else hidden
        hidden_states.append(hidden)
        calls.append(LayerCall(args, kwargs))
        if len(calls) == len(layers):
            raise StopForward
        return hidden

    with _replaced_forwards([model.get_submodule(layer) for layer in layers], record), suppress(StopForward):
        model(**{**batch, "use_cache": False})
    return hidden_states[0], calls


def positions_read(model: PreTrainedModel, layers: Sequence[str], batch: Mapping[str, Any]) -> torch.Tensor:
    """Which positions of the last layer's output the model's own output depends on, bool `[rows, length]`.

    A classifier reads the first token only, a language model all of them. Found by the gradient of a random
    combination of all outputs, with the layers skipped.
    """
    entered: list[torch.Tensor] = []

    def skip(hidden: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        entered.append((kwargs["hidden_states"] if hidden is None else hidden).detach().requires_grad_())
        return entered[-1]

    with _replaced_forwards([model.get_submodule(layer) for layer in layers], skip), torch.enable_grad():
        output = model(**{**batch, "use_cache": False, "output_hidden_states": False, "return_dict": True})
        tensors = [value for value in output.to_tuple() if isinstance(value, torch.Tensor) and value.requires_grad]
        mixed = torch.stack([_random_mixture(value.float()) for value in tensors]).sum()
        gradient = torch.autograd.grad(mixed, entered[-1])[0]
    return gradient.ne(0).any(-1)


def _random_mixture(values: torch.Tensor) -> torch.Tensor:
    """A random linear combination of all entries; the last axis first, which can be a whole vocabulary."""
    generator = torch.Generator().manual_seed(0)
    while values.dim():
        values = values @ torch.randn(values.shape[-1], generator=generator).to(values)
    return values


@contextmanager
def _replaced_forwards(modules: Sequence[nn.Module], forward: Any) -> Iterator[None]:
    own = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            if before is None:
                del module.forward
            else:
                module.forward = before
