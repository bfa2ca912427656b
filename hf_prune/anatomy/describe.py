"""Reads a model's anatomy from the family table, and refuses what it does not understand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .blocks import Block, ModelAnatomy, Projection
from .families import family_of, supported_model_types
from .layouts import AttentionLayout, FeedForwardLayout


def describe_model(model: PreTrainedModel) -> ModelAnatomy:
    """Finds every block of heads and filters in a model.

    Args:
        model: any model of a supported family, with any task head, dense or already pruned.

    Returns:
        The blocks in the order in which they run, with units, projections and the cost of a unit.

    Raises:
        UnsupportedModelError: the family is not in the table, or a module is not what the table says (an adapter or
            a quantised layer in place of a plain `nn.Linear`, for instance).
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a transformers PreTrainedModel. Pass the model itself; unwrap a PeftModel"
            " with merge_and_unload() and a parallel wrapper with accelerator.unwrap_model()."
        )
    held = {path: blocks for path, blocks in _held_blocks(model) if blocks}
    if not held:
        raise UnsupportedModelError(_refusal(model))
    if len(held) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} holds several stacks of layers ({', '.join(held)}), and pruning them together is"
            " not supported yet. Prune each of these submodules by itself."
        )
    blocks = next(iter(held.values()))
    return ModelAnatomy(model.config.model_type, tuple(dict.fromkeys(block.layer for block in blocks)), tuple(blocks))


def describe_holder(holder: PreTrainedModel, path: str = "", prefix: str = "") -> list[Block]:
    """The blocks of the layers that `holder` itself holds; none if it holds no list of layers.

    Args:
        holder: a model of a supported family, `BertModel` rather than `BertForSequenceClassification`.
        path: its path from the root model.
        prefix: the root's `base_model_prefix`, left out of the blocks' keys.
    """
    family = family_of(getattr(holder.config, "model_type", None))
    if family is None or not _has(holder, family.layers):
        return []
    blocks: list[Block] = []
    for index, (name, layer) in enumerate(holder.get_submodule(family.layers).named_children()):
        layer_path = ".".join(part for part in (path, family.layers, name) if part)
        for layout in family.sublayers:
            if _has(layer, layout.output):
                # A decoder reads the length of what it has generated so far from its first layer's keys.
                needed = index == 0 and isinstance(layout, AttentionLayout) and layout.cached and _decodes(holder)
                key = f"{layer_path}.{layout.name}".removeprefix(f"{prefix}.")
                blocks.append(_block(layer, layout, key, path, layer_path, int(needed)))
    return blocks


def _held_blocks(model: PreTrainedModel) -> Iterator[tuple[str, list[Block]]]:
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            yield path, describe_holder(module, path, model.base_model_prefix)


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _decodes(holder: PreTrainedModel) -> bool:
    return bool(getattr(holder.config, "is_decoder", False))


def _block(
    layer: nn.Module, layout: AttentionLayout | FeedForwardLayout, key: str, holder: str, name: str, minimum: int
) -> Block:
    if isinstance(layout, AttentionLayout):
        head_dim = int(getattr(layer.get_submodule(layout.core), layout.head_dim))
        sources: tuple[str, ...] = (layout.query, layout.key, layout.value)
        width, heads_per_unit = head_dim, 1
    else:
        head_dim, sources, width, heads_per_unit = 0, layout.inputs, 1, 0
    output = _projection(layer, layout.output, 1, width, key)
    inputs = tuple(_projection(layer, source, 0, width, key) for source in sources)
    sizes = {_linear(layer, projection.path, key).weight.shape[projection.axis] for projection in (*inputs, output)}
    columns = min(sizes)
    if len(sizes) != 1 or columns % width:
        raise UnsupportedModelError(
            f"{key}: the projections disagree about the number of units ({sorted(sizes)} rows or columns in units of"
            f" {width}). The layout in hf_prune/anatomy/families.py does not fit this model."
        )
    return Block(
        kind="attention" if heads_per_unit else "feed_forward",
        key=key,
        holder=holder,
        layer=name,
        units=columns // width,
        head_dim=head_dim,
        heads_per_unit=heads_per_unit,
        inputs=inputs,
        output=output,
        layout=layout,
        minimum=minimum,
    )


def _projection(layer: nn.Module, path: str, axis: Literal[0, 1], width: int, key: str) -> Projection:
    linear = _linear(layer, path, key)
    return Projection(path, axis, width, linear.weight.shape[1 - axis], linear.bias is not None)


def _linear(layer: nn.Module, path: str, key: str) -> nn.Linear:
    module = layer.get_submodule(path)
    if not isinstance(module, nn.Linear) or not _is_plain(module):
        raise UnsupportedModelError(
            f"{key}: {path} is a {type(module).__name__}, where a plain nn.Linear with floating-point weights is"
            " needed. Merge adapters and prune before quantising."
        )
    return module


def _is_plain(linear: nn.Linear) -> bool:
    weight = linear.weight
    return weight.is_floating_point() and weight.shape == (linear.out_features, linear.in_features)


def _refusal(model: PreTrainedModel) -> str:
    model_type = model.config.model_type
    family = family_of(model_type)
    if family is not None:
        return (
            f"{type(model).__name__} has no layers at {family.layers!r}, where the {model_type!r} family keeps them:"
            " there is nothing to prune."
        )
    return (
        f"Models of type {model_type!r} ({type(model).__name__}) are not in the family table. Supported:"
        f" {', '.join(supported_model_types())}. To add one, describe its layers in hf_prune/anatomy/families.py"
        " (CONTRIBUTING.md, 'Adding a model family')."
    )
