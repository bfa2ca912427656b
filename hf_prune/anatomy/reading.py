"""Reads one block from a layer: what a layout says, filled in with the sizes that the modules have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import UnsupportedModelError
from .attention_sizes import HeadSizes, output_parts, parts_of
from .layouts import AttentionLayout, FeedForwardLayout
from .projections import Part, Projection
from .vocabulary import FILTERS, GROUPS, HEAD_SIZES, HEADS, KV_HEADS, KV_WIDTHS, WIDTHS, first_number, matching


def has_path(module: nn.Module, path: str) -> bool:
    """Whether there is a submodule of that name."""
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def fits(layer: nn.Module, layout: AttentionLayout | FeedForwardLayout) -> bool:
    """Whether a layer has all the projections that a layout names."""
    return all(has_path(layer, path) for path in (*layout.inputs, layout.output))


def read_block(layer: nn.Module, layout: AttentionLayout | FeedForwardLayout, config: Any, key: str) -> dict[str, Any]:
    """The fields of a `Block` that follow from its layer: units, projections, and what has to follow a cut.

    Args:
        layer: a layer that the layout fits.
        layout: what its projections are called and made of.
        config: of the model that holds the layer, for sizes that modules do not keep.
        key: the block's name, for messages.

    Raises:
        UnsupportedModelError: projections that are not plain, or sizes that contradict each other.
    """
    if isinstance(layout, AttentionLayout):
        return _read_attention(layer, layout, config, key)
    return _read_feed_forward(layer, layout, key)


def _read_attention(layer: nn.Module, layout: AttentionLayout, config: Any, key: str) -> dict[str, Any]:
    core = layer.get_submodule(layout.core)
    sizes = _head_sizes(layer, layout, core, config, key)
    units, unit = sizes.units(slices="slices" in layout.inputs.values(), coupled=_is_coupled(core, layout, sizes))
    present = {path: makes for path, makes in layout.optional.items() if has_path(layer, path)}
    inputs = tuple(
        _projection(layer, path, 0, parts_of(makes, sizes, units), key)
        for path, makes in {**layout.inputs, **present}.items()
    )
    return {
        "kind": "attention",
        "units": units,
        "unit": unit,
        "head_dim": sizes.head_dim,
        "heads_per_unit": sizes.heads_per_unit(units),
        "inputs": inputs,
        "output": _projection(layer, layout.output, 1, output_parts(layout, sizes, units), key),
        "counts": dict(_head_counts(core, sizes, units)),
        "config_counts": {name: sizes.per_unit(kind, units) for name, kind in layout.per_config.items()},
        "tables": {**layout.tables, **dict(_tables(layout.core, core, sizes))},
        "lists": tuple(_lists(layout.core, core, sizes)),
    }


def _head_sizes(layer: nn.Module, layout: AttentionLayout, core: nn.Module, config: Any, key: str) -> HeadSizes:
    """Numbers of heads and their sizes, from attributes of the core that fit the projections."""
    columns = _size(layer, layout.output, 1, key)
    rows = {makes: _size(layer, path, 0, key) for path, makes in layout.inputs.items()}
    head_dim = first_number(core, HEAD_SIZES)
    heads = first_number(core, HEADS) or first_number(config, HEADS)
    if head_dim is None and heads is not None:
        head_dim = (rows.get("query") or columns) // heads
    if not head_dim:
        raise UnsupportedModelError(f"{key}: {type(core).__name__} does not say how many heads it has.")
    declared = (first_number(core, GROUPS), first_number(core, HEADS))
    sizes = HeadSizes.of(rows, columns, head_dim, *declared, shared=_shares_one_key(config))
    if sizes is None:
        raise UnsupportedModelError(
            f"{key}: the projections disagree about the number of units ({rows} rows and {columns} columns, heads of"
            f" {head_dim}). The layout in hf_prune/anatomy/families.py does not fit this model."
        )
    return sizes


def _shares_one_key(config: Any) -> bool:
    """Whether the dense model has one key head for all queries (a pruned one may have come down to it)."""
    if getattr(config, "multi_query", False):
        return not getattr(config, "new_decoder_architecture", False)
    return (first_number(config, KV_HEADS) or 0) == 1


def _is_coupled(core: nn.Module, layout: AttentionLayout, sizes: HeadSizes) -> bool:
    """Whether a norm inside the core takes its mean over several heads: then one cannot go without the others."""
    widths = {sizes.heads * sizes.head_dim, sizes.kv * sizes.head_dim, sizes.heads * sizes.value_dim}
    after_output = layout.residual.module if layout.residual else None
    for name, child in core.named_children():
        if f"{layout.core}.{name}" == after_output:
            continue
        weight = getattr(child, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() == 1 and len(weight) in widths - {sizes.head_dim}:
            return True
    return False


def _head_counts(core: nn.Module, sizes: HeadSizes, units: int) -> Iterator[tuple[str, int]]:
    """Attributes of the core that follow the number of units, with their value per unit."""
    if not units:
        return
    shared = sizes.shared and units > 1
    kinds = [(HEADS, sizes.heads), (WIDTHS, sizes.heads * sizes.value_dim)]
    kinds += [(GROUPS, sizes.heads // sizes.kv)] if shared else [(KV_HEADS, sizes.kv), (KV_WIDTHS, sizes.kv_width)]
    for names, value in kinds:
        for name in matching(core, names, value):
            yield name, value // units


def _tables(path: str, core: nn.Module, sizes: HeadSizes) -> Iterator[tuple[str, int]]:
    """Parameters of the core, and of norms in it, that have an axis of heads."""
    for name, child in core.named_children():
        weight = getattr(child, "weight", None)
        if not isinstance(weight, torch.Tensor) or isinstance(child, (nn.Linear, nn.Embedding, Conv1D)):
            continue
        if weight.dim() == 2 and weight.shape[1] == sizes.head_dim and len(weight) in {sizes.heads, sizes.kv} - {1}:
            yield from ((f"{path}.{name}.{item}", 0) for item, _ in child.named_parameters())
    # Where there are as many heads as a head has values, a size does not tell: the layout has to name the parameter.
    counts = {sizes.heads, sizes.kv, sizes.heads * sizes.head_dim} - {1, sizes.head_dim}
    for name, parameter in core.named_parameters(recurse=False):
        axes = [axis for axis, size in enumerate(parameter.shape) if size in counts]
        if len(axes) == 1:
            yield f"{path}.{name}", axes[0]


def _lists(path: str, core: nn.Module, sizes: HeadSizes) -> Iterator[str]:
    """Lists inside the core with a module for every head (StableLM's norms)."""
    for name, module in core.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) in {sizes.heads, sizes.kv} - {1}:
            yield f"{path}.{name}"


def _read_feed_forward(layer: nn.Module, layout: FeedForwardLayout, key: str) -> dict[str, Any]:
    filters = _size(layer, layout.output, 1, key)
    rows = {path: _size(layer, path, 0, key) for path in layout.inputs}
    expected = (2 if layout.fused else 1) * filters
    if set(rows.values()) != {expected}:
        raise UnsupportedModelError(
            f"{key}: the projections disagree about the number of units ({rows} rows for {filters} columns). The"
            " layout in hf_prune/anatomy/families.py does not fit this model."
        )
    parent = layer.get_submodule(layout.output.rpartition(".")[0])
    # A norm over as many values as the projection puts out is taken for one that follows it.
    norms = [child for child in parent.children() if _is_norm_over(child, filters)]
    coupled = bool(norms) and filters != _size(layer, layout.output, 0, key)
    width = filters if coupled else 1
    parts = (Part(0, width), Part(filters, width)) if layout.fused else (Part(0, width),)
    units = (1 if filters else 0) if coupled else filters
    counts = dict.fromkeys(matching(parent, FILTERS, filters), width) if filters else {}
    return {
        "kind": "feed_forward",
        "units": units,
        "unit": "sublayer" if coupled else "filters",
        "head_dim": 0,
        "heads_per_unit": 0,
        "inputs": tuple(_projection(layer, path, 0, parts, key) for path in layout.inputs),
        "output": _projection(layer, layout.output, 1, (Part(0, width),), key),
        "counts": counts,
    }


def _is_norm_over(module: nn.Module, size: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 1 and len(weight) == size


def _projection(layer: nn.Module, path: str, axis: Literal[0, 1], parts: tuple[Part, ...], key: str) -> Projection:
    module = _linear(layer, path, key)
    transposed = isinstance(module, Conv1D)
    other = module.weight.shape[axis if transposed else 1 - axis]
    return Projection(path, axis, parts, other, module.bias is not None, transposed)


def _size(layer: nn.Module, path: str, axis: int, key: str) -> int:
    """Rows (axis 0) or columns (axis 1) of a projection."""
    module = _linear(layer, path, key)
    return int(module.weight.shape[1 - axis if isinstance(module, Conv1D) else axis])


def _linear(layer: nn.Module, path: str, key: str) -> Any:
    module = layer.get_submodule(path)
    if not isinstance(module, (nn.Linear, Conv1D)) or not _is_plain(module):
        raise UnsupportedModelError(
            f"{key}: {path} is a {type(module).__name__}, where a plain nn.Linear with floating-point weights is"
            " needed. Merge adapters and prune before quantising."
        )
    return module


def _is_plain(module: Any) -> bool:
    weight = module.weight
    if isinstance(module, Conv1D):
        return bool(weight.is_floating_point() and weight.dim() == 2)
    return bool(weight.is_floating_point() and weight.shape == (module.out_features, module.in_features))
