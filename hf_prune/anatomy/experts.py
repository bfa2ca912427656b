"""Mixtures of experts: where the filters of each expert, and whole experts, are in parameters with an axis of experts.

The module that holds them is one that transformers prepares for its `experts_implementation`: it says of itself
whether experts are gated, whether they have biases and how their weights are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedModelError
from .layouts import ExpertsLayout
from .projections import Part, Projection
from .vocabulary import EXPERTS, EXPERTS_PER_TOKEN, FILTERS, first_number, matching

_MARKS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")


@dataclass(frozen=True)
class ExpertSizes:
    """The sizes of one mixture.

    Attributes:
        first: name of the parameter that makes the filters.
        experts, filters, hidden: experts, filters of each, and size of the residual stream.
        per_token: experts that each token goes to.
    """

    first: str
    experts: int
    filters: int
    hidden: int
    per_token: int

    @property
    def share(self) -> float:
        """The fraction of the tokens that one expert sees, on average."""
        return self.per_token / self.experts


def has_experts(layer: nn.Module, layout: ExpertsLayout) -> bool:
    """Whether a layer has a mixture of experts by these names, stored as transformers stores them."""
    try:
        experts = layer.get_submodule(layout.name)
        layer.get_submodule(layout.router)
    except AttributeError:
        return False
    down = experts._parameters.get("down_proj")
    return down is not None and down.dim() == 3 and all(hasattr(experts, mark) for mark in _MARKS)


def read_filters(layer: nn.Module, layout: ExpertsLayout, config: Any, key: str) -> list[dict[str, Any]]:
    """The fields of one `Block` of filters for every expert.

    Args:
        layer: a layer for which `has_experts` holds.
        layout: what its modules are called.
        config: of the model, for sizes that modules do not keep.
        key: the name of the group, which all its blocks are told.

    Raises:
        UnsupportedModelError: the parameters' shapes do not fit together.
    """
    experts: Any = layer.get_submodule(layout.name)
    sizes = _sizes(layer, layout, config, key)
    rows = _rows_per_filter(experts, sizes)
    make = f"{layout.name}.{sizes.first}"
    bias, transposed = bool(experts.has_bias), bool(experts.is_transposed)
    counts = dict.fromkeys(matching(experts, FILTERS, sizes.filters), 1) if sizes.filters else {}
    return [
        {
            "kind": "feed_forward",
            "units": sizes.filters,
            "unit": "filters",
            "head_dim": 0,
            "heads_per_unit": 0,
            "inputs": (Projection(make, 0, rows, sizes.hidden, bias, transposed, expert),),
            "output": Projection(layout.output, 1, (Part(0, 1),), sizes.hidden, bias, transposed, expert),
            "counts": counts,
            "group": key,
            "share": sizes.share,
        }
        for expert in range(sizes.experts)
    ]


def read_whole(layer: nn.Module, layout: ExpertsLayout, config: Any, key: str) -> dict[str, Any] | None:
    """The fields of the `Block` whose units are the experts, or None where the router cannot do without one.

    A router can if all it has per expert is a row of weights: those that choose among groups of experts, or correct
    their choice by statistics, cannot.
    """
    experts: Any = layer.get_submodule(layout.name)
    router = layer.get_submodule(layout.router)
    sizes = _sizes(layer, layout, config, key)
    per_token = first_number(router, EXPERTS_PER_TOKEN)
    if per_token is None or not _chooses_by_rows(layer, layout, sizes.experts):
        return None
    parameters = [name for name in stacked_parameters(experts, sizes.experts) if name != "down_proj"]
    inputs = [_rows_of(f"{layout.name}.{name}", experts.get_parameter(name)) for name in parameters]
    inputs += [_rows_of(f"{layout.router}.{name}", value) for name, value in router.named_parameters(recurse=False)]
    return {
        "kind": "feed_forward",
        "units": sizes.experts,
        "unit": "experts",
        "head_dim": 0,
        "heads_per_unit": 0,
        "inputs": tuple(inputs),
        "output": _rows_of(layout.output, experts.down_proj),
        "minimum": per_token,
        "share": sizes.share,
    }


def stacked_parameters(module: nn.Module, experts: int) -> list[str]:
    """Names of a module's own parameters whose first axis is that of the experts."""
    return [name for name, value in module.named_parameters(recurse=False) if value.dim() and len(value) == experts]


def expert_counts(layer: nn.Module, layout: ExpertsLayout, experts: int) -> list[tuple[nn.Module, str]]:
    """Attributes of the mixture's modules that say how many experts there are."""
    mixture = layer.get_submodule(layout.name.rpartition(".")[0])
    modules = (mixture, layer.get_submodule(layout.name), layer.get_submodule(layout.router))
    return [(module, name) for module in modules for name in matching(module, EXPERTS, experts)]


def _sizes(layer: nn.Module, layout: ExpertsLayout, config: Any, key: str) -> ExpertSizes:
    experts: Any = layer.get_submodule(layout.name)
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    made, read = experts._parameters.get(first), experts.down_proj
    if made is None or made.dim() != 3 or not made.is_floating_point():
        raise UnsupportedModelError(f"{key}: {type(experts).__name__} has no plain parameter {first!r}.")
    number, hidden, filters = read.shape if not experts.is_transposed else read.transpose(1, 2).shape
    halves = 2 if experts.has_gate else 1
    expected = (number, halves * filters, hidden)
    if tuple(made.shape if not experts.is_transposed else made.transpose(1, 2).shape) != expected:
        raise UnsupportedModelError(
            f"{key}: {first} of shape {tuple(made.shape)} does not fit down_proj of shape {tuple(read.shape)}."
        )
    places = (layer.get_submodule(layout.router), layer.get_submodule(layout.name.rpartition(".")[0]), config)
    per_token = next((found for place in places if (found := first_number(place, EXPERTS_PER_TOKEN))), 1)
    return ExpertSizes(first, number, filters, hidden, min(per_token, number))


def _rows_per_filter(experts: Any, sizes: ExpertSizes) -> tuple[Part, ...]:
    """Where a filter's rows are in the parameter that makes the filters."""
    if not experts.has_gate:
        return (Part(0, 1),)
    return (Part(0, 1), Part(sizes.filters, 1)) if experts.is_concatenated else (Part(0, 2),)


def _rows_of(path: str, parameter: torch.Tensor) -> Projection:
    """A parameter with an axis of experts as the rows that each expert has in it."""
    width = parameter[0].numel() // parameter.shape[-1] if parameter.dim() > 1 and parameter.shape[-1] else 1
    return Projection(
        path, 0, (Part(0, width),), parameter.shape[-1] if parameter.dim() > 1 else 1, False, expert="all"
    )


def _chooses_by_rows(layer: nn.Module, layout: ExpertsLayout, experts: int) -> bool:
    router = layer.get_submodule(layout.router)
    mixture = layer.get_submodule(layout.name.rpartition(".")[0])
    tensors = {**dict(router.named_parameters()), **dict(router.named_buffers())}
    rows = all(name in ("weight", "bias") and len(value) == experts for name, value in tensors.items())
    own = [*mixture._parameters.values(), *mixture._buffers.values()]
    grouped = any((first_number(place, ("n_group", "num_groups")) or 1) > 1 for place in (router, mixture))
    return "weight" in tensors and rows and not own and not grouped
