"""How a model calls its layers: recorded from the model itself, so that no modelling code is repeated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from ..errors import PruningError, UnsupportedModelError

Forward = Callable[..., Any]


class StopForward(Exception):
    """Ends a forward pass whose remainder nobody needs."""


@dataclass
class LayerCall:
    """The arguments of one layer's call, the hidden states left out.

    Attributes:
        layer: path of the layer.
        args, kwargs: the other arguments; caches are replaced by None, so that a call can be repeated.
        keyword: the name under which hidden states are passed, or None for the first position.
    """

    layer: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: str | None = None

    @classmethod
    def of(cls, layer: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[LayerCall, torch.Tensor]:
        """The call with these arguments, and the hidden states among them."""
        others = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
        rest = [None if isinstance(value, Cache) else value for value in args]
        if rest and isinstance(rest[0], torch.Tensor):
            return cls(layer, tuple(rest[1:]), others), rest[0]
        tensors = [name for name, value in others.items() if isinstance(value, torch.Tensor)]
        keyword = "hidden_states" if "hidden_states" in tensors else next(iter(tensors), None)
        if keyword is None:
            raise UnsupportedModelError(
                f"{layer} is called without a tensor of hidden states; such a call cannot be repeated."
            )
        hidden = kwargs[keyword]
        del others[keyword]
        return cls(layer, tuple(rest), others, keyword), hidden

    def output(self, layer: Forward, hidden: torch.Tensor) -> Any:
        """Calls `layer` the same way on other hidden states."""
        if self.keyword is None:
            return layer(hidden, *self.args, **self.kwargs)
        return layer(*self.args, **{self.keyword: hidden}, **self.kwargs)

    def run(self, layer: Forward, hidden: torch.Tensor) -> torch.Tensor:
        """Calls `layer` the same way on other hidden states and returns the new ones."""
        return hidden_of(self.output(layer, hidden))


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states in what a layer returns: all of it, or the first of several values."""
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


@dataclass(frozen=True)
class Segment:
    """Layers that run one after the other, each on the output of the one before.

    Attributes:
        layers: their paths, in order; a single one where a layer shares its weights and runs several times.
        calls: how often they are called in one forward pass, together.
        values: where their arguments do not depend on what they compute, how many values they return (0: a plain
            tensor), so that recording can skip them; None where they have to run.
    """

    layers: tuple[str, ...]
    calls: int
    values: int | None = None

    @property
    def shared(self) -> bool:
        """Whether it is one layer that runs several times."""
        return self.calls > len(self.layers)


def record_calls(
    model: PreTrainedModel, segment: Segment, inputs: Mapping[str, Any]
) -> list[tuple[torch.Tensor, list[LayerCall]]]:
    """Runs a model up to the last call of a segment's layers.

    Args:
        model: the model, in evaluation mode.
        segment: from `find_segments`.
        inputs: keyword arguments of `forward`, without labels.

    Returns:
        The hidden states that enter the first layer and each layer's call; where one layer runs several times, such a
        pair for every run.

    Raises:
        PruningError: the layers are not called as often as they were when the segment was found.
    """
    entries: list[tuple[torch.Tensor, list[LayerCall]]] = []
    count = 0

    def wrap(name: str, own: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            call, hidden = LayerCall.of(name, args, kwargs)
            count += 1
            if segment.shared or not entries:
                entries.append((hidden, []))
            entries[-1][1].append(call)
            if count == segment.calls:
                raise StopForward
            return own(*args, **kwargs) if segment.values is None else as_returned(hidden, segment.values)

        return forward

    with replaced_forwards(model, segment.layers, wrap), suppress(StopForward):
        run_model(model, inputs)
    if count != segment.calls:
        raise PruningError(
            f"{segment.layers[0]} and the layers after it ran {count} times on one batch and {segment.calls} times on"
            " the first. Every calibration batch must have the same kinds of inputs."
        )
    return entries


def positions_read(model: PreTrainedModel, segment: Segment, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Which positions of the last layer's output the model's own output depends on, bool `[rows, length]`.

    A classifier reads the first token only, a language model all of them. Found by the gradient of a random
    combination of all outputs; layers that can be skipped are. Where the outputs have no gradient, all positions.
    """
    left: list[torch.Tensor] = []

    def wrap(name: str, own: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if segment.values is None:
                output = own(*args, **kwargs)
            else:
                output = as_returned(LayerCall.of(name, args, kwargs)[1], segment.values)
            if name != segment.layers[-1]:
                return output
            left.append(hidden_of(output).detach().requires_grad_())
            return left[-1].clone() if isinstance(output, torch.Tensor) else (left[-1].clone(), *output[1:])

        return forward

    with replaced_forwards(model, segment.layers, wrap), torch.enable_grad():
        output = run_model(model, inputs, output_hidden_states=False, return_dict=True)
        values = output.to_tuple() if hasattr(output, "to_tuple") else output
        tensors = [value for value in values if isinstance(value, torch.Tensor) and value.requires_grad]
        gradient = None
        if tensors:
            mixed = torch.stack([_random_mixture(value.float()) for value in tensors]).sum()
            [gradient] = torch.autograd.grad(mixed, left[-1:], allow_unused=True)
    if gradient is None:
        return torch.ones(left[-1].shape[:-1], dtype=torch.bool, device=left[-1].device)
    return gradient.ne(0).any(-1)


def layer_shapes(model: PreTrainedModel, layers: Sequence[str], inputs: Mapping[str, Any]) -> dict[str, torch.Size]:
    """The shape of the hidden states that enter each layer; layers that this input does not reach are left out."""
    shapes: dict[str, torch.Size] = {}

    def wrap(name: str, own: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            shapes.setdefault(name, LayerCall.of(name, args, kwargs)[1].shape)
            return own(*args, **kwargs)

        return forward

    with replaced_forwards(model, layers, wrap):
        run_model(model, inputs)
    return shapes


def run_model(model: PreTrainedModel, inputs: Mapping[str, Any], **options: Any) -> Any:
    """A forward pass without a cache; what is drawn at random (masks of an autoencoder) is the same every time.

    Args:
        model: the model.
        inputs: keyword arguments of its `forward`.
        options: further ones, which are left out where `forward` does not take them.
    """
    accepted = inspect.signature(model.forward).parameters
    flexible = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    given = options if flexible else {name: value for name, value in options.items() if name in accepted}
    settings = {"use_cache": False, **given} if "use_cache" in accepted else given
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return model(**{**inputs, **settings})


def run_plainly(model: PreTrainedModel, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Every floating-point output of a model, but for what has an axis of heads or depends on a cache."""
    plain = {"use_cache": False, "output_attentions": False, "output_hidden_states": False, "return_dict": True}
    return list(floating_tensors(run_model(model, inputs, **plain)))


def floating_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every floating-point tensor in what a model or a layer returns."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from floating_tensors(item)
    elif hasattr(value, "to_tuple"):
        yield from floating_tensors(value.to_tuple())


def _random_mixture(values: torch.Tensor) -> torch.Tensor:
    """A random linear combination of all entries; the last axis first, which can be a whole vocabulary."""
    generator = torch.Generator().manual_seed(0)
    while values.dim():
        values = values @ torch.randn(values.shape[-1], generator=generator).to(values)
    return values


def as_returned(hidden: torch.Tensor, values: int) -> Any:
    """Hidden states as a layer of a segment with that many `values` returns them."""
    return (hidden, *[None] * (values - 1)) if values else hidden


@contextmanager
def replaced_forwards(
    model: PreTrainedModel, layers: Sequence[str], wrap: Callable[[str, Forward], Forward]
) -> Iterator[None]:
    """Every layer's `forward` replaced by what `wrap` makes of its path and its own `forward`."""
    modules = {name: model.get_submodule(name) for name in layers}
    own = {name: module.__dict__.get("forward") for name, module in modules.items()}
    for name, module in modules.items():
        module.forward = wrap(name, module.forward)
    try:
        yield
    finally:
        for name, module in modules.items():
            if own[name] is None:
                del module.forward
            else:
                module.forward = own[name]
