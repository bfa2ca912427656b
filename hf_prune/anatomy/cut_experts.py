"""What removing filters of experts, or whole experts, means: parameters with an axis of experts get smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import PruningError
from .blocks import Block
from .cut_forward import ConfigView
from .experts import expert_counts, stacked_parameters
from .layouts import ExpertsLayout
from .projections import Projection, kept_indices, weight_of
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
            parameter = module.get_parameter(name)
            kept = torch.tensor(list(units), device=parameter.device)
            _replace(module, name, parameter.detach().index_select(0, kept), log)
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
    path = members[0].projections[position].path
    parent, _, name = path.rpartition(".")
    module = layer.get_submodule(parent)
    weights, biases = [], []
    old = module.get_parameter(name)
    old_bias = module._parameters.get(f"{name}_bias")
    for member in members:
        projection = member.projections[position]
        index = _kept(layer, member, projection, units[member.key])
        weight = weight_of(layer, projection).detach().index_select(projection.axis, index)
        weights.append(weight.T if projection.transposed else weight)
        if projection.axis == 0 and old_bias is not None and isinstance(projection.expert, int):
            biases.append(old_bias.detach()[projection.expert].index_select(0, index))
    _replace(module, name, torch.stack(weights), log, old.requires_grad)
    if biases and old_bias is not None:
        _replace(module, f"{name}_bias", torch.stack(biases), log, old_bias.requires_grad)


def _kept(layer: nn.Module, block: Block, projection: Projection, units: Sequence[int]) -> torch.Tensor:
    weight = weight_of(layer, projection)
    owners = projection.owners(block.units, weight.shape[projection.axis])
    return torch.from_numpy(kept_indices(owners, units)).to(weight.device)


def _replace(module: nn.Module, name: str, value: torch.Tensor, log: UndoLog, trained: bool | None = None) -> None:
    trained = module.get_parameter(name).requires_grad if trained is None else trained
    log.set(module, name, nn.Parameter(value.contiguous(), requires_grad=trained))
