"""What removing filters of experts, or whole experts, means: parameters with an axis of experts get smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import PruningError
from .blocks import Block
from .cut_forward import ConfigView
from .experts import expert_counts, stacked_parameters
from .layouts import ExpertsLayout
from .parameters import change_parameter, keep_slices
from .projections import Indices, Projection, kept_indices, oriented, weight_of
from .undo import UndoLog

# Grouped matrix products need rows of a multiple of 16 bytes, which is 8 numbers in half precision.
ALIGNED_WIDTH = 8


def keep_filters(layer: nn.Module, members: Sequence[Block], units: Mapping[str, Sequence[int]], log: UndoLog) -> None:
    """Cuts all experts of a group, each to filters of its own.

    Args:
        layer: where the experts are (the model's own layer, or a copy of it).
        members: the blocks of the group, one per expert, in order.
        units: what stays, by the blocks' keys, in ascending order.
        log: remembers what was there.

    Raises:
        PruningError: the experts would not have the same number of filters, as one parameter for all of them needs.
    """
    sizes = {len(units[member.key]) for member in members}
    if len(sizes) > 1:
        raise PruningError(f"{members[0].group}: {unequal_counts(sizes)}")
    [size] = sizes
    block = members[0]
    if size == block.units:
        return
    for position in range(len(block.projections)):
        _keep_in_every_expert(layer, members, position, units, log)
    experts: Any = layer.get_submodule(block.layout.name)
    for name, per_unit in block.counts.items():
        log.set(experts, name, per_unit * size)
    if (size % ALIGNED_WIDTH or not size) and not isinstance(experts.config, UngroupedConfig):
        log.set(experts, "config", UngroupedConfig(experts.config))
    elif size and size % ALIGNED_WIDTH == 0 and isinstance(experts.config, UngroupedConfig):
        log.set(experts, "config", experts.config._config)


def unequal_counts(sizes: set[int]) -> str:
    """Why experts of a group cannot keep different numbers of filters."""
    return (
        f"the experts keep {', '.join(map(str, sorted(sizes)))} filters, but all experts of a layer must keep the same"
        " number (which filters is each one's own matter): their weights are one parameter."
    )


def keep_experts(layer: nn.Module, block: Block, units: Sequence[int], log: UndoLog) -> None:
    """Removes whole experts; the router has no rows for them any more, so their tokens go to others."""
    if len(units) == block.units:
        return
    assert isinstance(block.layout, ExpertsLayout)
    counts = expert_counts(layer, block.layout, block.units)
    for path in (block.layout.name, block.layout.router):
        module = layer.get_submodule(path)
        for name in stacked_parameters(module, block.units):
            keep_slices(module, name, 0, np.asarray(units, dtype=np.int64), log)
    for module, name in counts:
        log.set(module, name, len(units))


class UngroupedConfig(ConfigView):
    """The config as experts with odd widths see it: no grouped matrix products, which cannot compute them."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, {})

    @property
    def _experts_implementation(self) -> str | None:
        chosen: str | None = self._config._experts_implementation
        return "eager" if chosen == "grouped_mm" else chosen


def _keep_in_every_expert(
    layer: nn.Module, members: Sequence[Block], position: int, units: Mapping[str, Sequence[int]], log: UndoLog
) -> None:
    """One parameter of the group (the block's projection at `position`), and its bias if that is cut as well."""
    projections = [member.projections[position] for member in members]
    parent, _, name = projections[0].path.rpartition(".")
    module = layer.get_submodule(parent)
    kept = [
        _kept(layer, member, projection, units[member.key])
        for member, projection in zip(members, projections, strict=True)
    ]
    change_parameter(module, name, partial(_kept_weights, projections, kept), log)
    # The bias that goes with the rows; a model may have none.
    if projections[0].axis == 0 and module._parameters.get(f"{name}_bias") is not None:
        experts = [(projection.expert, index) for projection, index in zip(projections, kept, strict=True)]
        change_parameter(module, f"{name}_bias", partial(_kept_biases, experts), log)


def _kept(layer: nn.Module, block: Block, projection: Projection, units: Sequence[int]) -> Indices:
    size = weight_of(layer, projection).shape[projection.axis]
    return kept_indices(projection.owners(block.units, size), units)


def _kept_weights(projections: Sequence[Projection], kept: Sequence[Indices], old: torch.Tensor) -> torch.Tensor:
    """A parameter of all experts, each with its own rows or columns."""
    weights = []
    for projection, index in zip(projections, kept, strict=True):
        places = torch.from_numpy(index).to(old.device)
        weight = oriented(old, projection).index_select(projection.axis, places)
        weights.append(weight.T if projection.transposed else weight)
    return torch.stack(weights)


def _kept_biases(kept: Sequence[tuple[Any, Indices]], old: torch.Tensor) -> torch.Tensor:
    return torch.stack([old[expert][torch.from_numpy(index).to(old.device)] for expert, index in kept])
