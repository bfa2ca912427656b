"""Layers that do nothing once they are empty, which can therefore go altogether."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy
from ..calibration import Batch
from ..errors import PruningError
from ..gates import UnitGates
from ..offloading import device_of
from ..scores import evaluating
from .layers import LayerRemoval, layers_passed_over, layers_watched
from .plan import PruningPlan, layer_key
from .verify import outputs


def drop_identity_layers(model: PreTrainedModel, anatomy: ModelAnatomy, plan: PruningPlan, batch: Batch) -> PruningPlan:
    """Removes the layers that a plan empties and that hand their hidden states on unchanged once they are empty.

    In layers that normalise before each sublayer and have no biases, nothing but the residual stream is left when all
    heads and filters are gone. Whether that is so is seen by running the masked model. A layer that the plan empties
    but that cannot be removed (others depend on it, or the config has no entry for it) stays, empty.

    Args:
        model: the dense model, which is not changed.
        anatomy: from `describe_model(model)`.
        plan: what stays.
        batch: keyword arguments of `forward`.

    Returns:
        The plan with such layers among its `removed_layers`.
    """
    empty = [layer for layer in anatomy.layers if _is_emptied(anatomy.blocks_of_layer(layer), plan)]
    for layer in _unchanging(model, anatomy, plan, empty, batch) if empty else ():
        plan = _without(model, anatomy, plan, layer)
    return plan


def _is_emptied(blocks: Sequence[Block], plan: PruningPlan) -> bool:
    """Nothing is kept, and there is no bias that a repair could give a value."""
    return not any(plan.count(block) or block.output.bias or plan.removes(block) for block in blocks)


def _unchanging(
    model: PreTrainedModel, anatomy: ModelAnatomy, plan: PruningPlan, layers: Sequence[str], batch: Batch
) -> list[str]:
    """Those of the layers whose output is their input, bit for bit, while the gates are closed on what goes."""
    same: dict[str, bool] = {}

    def compare(layer: str, hidden: torch.Tensor, output: Any) -> None:
        result = output[0] if isinstance(output, tuple) else output
        same[layer] = same.get(layer, True) and torch.equal(result, hidden)

    masks = [mask.to(device_of(model)) for mask in plan.masks(anatomy.blocks)]
    with (
        torch.no_grad(),
        evaluating(model),
        UnitGates(model, anatomy.blocks, masks),
        layers_passed_over(model, anatomy, plan),
        layers_watched(model, layers, compare),
    ):
        outputs(model, batch)
    return [layer for layer in layers if same.get(layer)]


def _without(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan, layer: str) -> PruningPlan:
    """The plan without one more layer, or as it is if that layer cannot go."""
    name = layer_key(anatomy.blocks_of_layer(layer)[0])
    shorter = replace(plan, removed_layers=(*plan.removed_layers, name))
    try:
        shorter.validate(anatomy)
        LayerRemoval.of(model, anatomy, shorter)
    except PruningError:
        return plan
    return shorter
