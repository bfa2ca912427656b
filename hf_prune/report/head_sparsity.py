"""How many weights each head or filter has lost to weight pruning (Gordon et al. 2020, Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import Block, describe_model, oriented, parameter_of
from ..errors import PruningError
from .alike import check_masks

Masks = Mapping[str, torch.Tensor]


def sparsity_per_head(model: PreTrainedModel, masks: Masks | None = None) -> dict[str, torch.Tensor]:
    """The share of zeros among the weights of each head: its part of query, key, value and output projection.

    Args:
        model: a model with zeros in its weights, as weight pruning leaves it.
        masks: parameter name → bool mask of its shape, True where the weight is kept; a parameter without a mask is
            kept whole. With masks the weights are not looked at.

    Returns:
        Key of the attention block → float64 `[heads]`; a group of heads that share keys and values is one of them.

    Raises:
        PruningError: a mask that is not a bool tensor, has another shape than its parameter, or names none.
        UnsupportedModelError: the model's layers are not understood.
    """
    return _sparsity(model, masks, "attention")


def sparsity_per_filter(model: PreTrainedModel, masks: Masks | None = None) -> dict[str, torch.Tensor]:
    """The share of zeros among the weights of each FFN filter: its rows and its column.

    Args, returns and errors as of `sparsity_per_head`, for the feed-forward blocks.
    """
    return _sparsity(model, masks, "feed_forward")


def _sparsity(model: PreTrainedModel, masks: Masks | None, kind: str) -> dict[str, torch.Tensor]:
    anatomy = describe_model(model)
    if masks is not None:
        _check_fit(model, masks)
    names = _names(model, masks or {})
    blocks = [block for block in anatomy.blocks if block.kind == kind]
    return {block.key: _block_sparsity(model, block, masks, names) for block in blocks}


def _block_sparsity(model: nn.Module, block: Block, masks: Masks | None, names: Mapping[int, str]) -> torch.Tensor:
    layer = model.get_submodule(block.layer)
    removed = torch.zeros(block.units, dtype=torch.float64)
    for projection in block.projections:
        parameter = parameter_of(layer, projection)
        if masks is None:
            zeros = parameter.detach() == 0
        elif id(parameter) in names:
            zeros = ~masks[names[id(parameter)]]
        else:
            continue
        removed += projection.sums_per_unit(oriented(zeros, projection), block.units).cpu()
    return removed / sum(projection.weights_per_unit for projection in block.projections)


def _names(model: nn.Module, masks: Masks) -> dict[int, str]:
    """Parameters that have a mask → its name; a parameter with several names may be masked under any of them."""
    pairs = model.named_parameters(remove_duplicate=False)
    return {id(parameter): name for name, parameter in pairs if name in masks}


def _check_fit(model: nn.Module, masks: Masks) -> None:
    check_masks(masks)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise PruningError(
                f"There is a mask for {name!r}, but {type(model).__name__} has no parameter of that name. Pass the"
                " masks of this model, under the names of its named_parameters()."
            )
        shape = parameters[name].shape
        if mask.shape != shape:
            raise PruningError(f"The mask of {name!r} has the shape {tuple(mask.shape)}, the parameter {tuple(shape)}.")
