"""Reads a model's anatomy from the family table, and refuses what it does not understand."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .blocks import Block, ModelAnatomy
from .experts import has_experts, read_filters, read_whole
from .families import family_of, known_sublayers, supported_model_types
from .holders import models_around
from .layouts import AttentionLayout, ExpertsLayout, Layout
from .parallel_plan import planned_sublayers
from .proof import prove
from .reading import fits, read_block


def check_model(model: Any) -> None:
    """Raises an UnsupportedModelError, which says what to pass instead, for what is no model of transformers."""
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a transformers PreTrainedModel. Pass the model itself; unwrap a PeftModel"
            " with merge_and_unload() and a parallel wrapper with accelerator.unwrap_model()."
        )


def describe_model(model: PreTrainedModel) -> ModelAnatomy:
    """Finds every block of heads and filters in a model.

    Model types in the family table are read as it says. In others, layers are looked for whose projections are named
    as in some family; what was found is then proved on a small random batch: units are masked and removed, and only
    if both give the same outputs is the model accepted.

    Args:
        model: any transformers model, with any task head, dense or already pruned.

    Returns:
        The blocks in the order of the model's modules, with units, projections and the cost of a unit.

    Raises:
        UnsupportedModelError: nothing that is known was found, the proof failed, or a module is not what the table
            says (an adapter or a quantised layer in place of a plain `nn.Linear`, for instance).
    """
    check_model(model)
    found = read_blocks(model)
    if not found:
        raise UnsupportedModelError(_refusal(model))
    blocks = tuple(block for block in found if block.unit != "experts")
    experts = tuple(block for block in found if block.unit == "experts")
    layers = tuple(dict.fromkeys(block.layer for block in blocks))
    anatomy = ModelAnatomy(model.config.model_type, layers, blocks, experts)
    unknown = unknown_model_types(model)
    if unknown:
        anatomy = prove(model, anatomy, unknown)
    return anatomy


def read_blocks(model: PreTrainedModel) -> list[Block]:
    """The blocks of every list of layers in a model, without proof; none if nothing is known there.

    Experts are among them twice: the filters of each, and the experts of a layer as the units of one block.
    """
    return [block for stack in _stacks(model) for block in _stack_blocks(model, stack)]


def unknown_model_types(model: PreTrainedModel) -> tuple[str, ...]:
    """Model types that hold layers and are not in the table."""
    types = [stack.holder.config.model_type for stack in _stacks(model) if not stack.declared]
    return tuple(dict.fromkeys(types))


@dataclass(frozen=True)
class _Stack:
    """A list of layers: its path, the model that holds it, and that model's layouts."""

    path: str
    holder: PreTrainedModel
    layers: tuple[tuple[str, nn.Module, tuple[Layout, ...]], ...]

    @property
    def declared(self) -> bool:
        """Whether the table says how the layers are laid out."""
        return family_of(self.holder.config.model_type) is not None


def _stacks(model: PreTrainedModel) -> Iterator[_Stack]:
    """Every outermost list of layers with something to prune, in the model's own order."""
    holders: dict[str, PreTrainedModel] = {}
    taken: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            holders[path] = module
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in taken):
            continue
        prefix = max((prefix for prefix in holders if _is_inside(path, prefix)), key=len)
        holder = holders[prefix]
        layers = tuple(_layers(module, path, _candidates(holder, _inside(path, prefix))))
        if layers:
            taken.append(path)
            yield _Stack(path, holder, layers)


def _candidates(holder: PreTrainedModel, layers: str) -> tuple[Layout, ...]:
    """The layouts that a list of layers may have: the family's, or whatever is known or planned for its names."""
    family = family_of(getattr(holder.config, "model_type", None))
    return family.sublayers if family is not None else (*known_sublayers(), *planned_sublayers(holder.config, layers))


def _layers(
    modules: nn.ModuleList, path: str, candidates: Sequence[Layout]
) -> Iterator[tuple[str, nn.Module, tuple[Layout, ...]]]:
    for name, layer in modules.named_children():
        found = tuple(layout for layout in candidates if _is_found(layer, layout))
        if found:
            yield f"{path}.{name}", layer, _without_repeats(found)


def _is_found(layer: nn.Module, layout: Layout) -> bool:
    return has_experts(layer, layout) if isinstance(layout, ExpertsLayout) else fits(layer, layout)


def _without_repeats(layouts: tuple[Layout, ...]) -> tuple[Layout, ...]:
    """Of layouts that read the same output projection, the one with most inputs (a GLU has both gate and values)."""
    best: dict[str, Layout] = {}
    for layout in layouts:
        rival = best.get(layout.output)
        if rival is None or len(layout.inputs) > len(rival.inputs):
            best[layout.output] = layout
    return tuple(best.values())


def _is_inside(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(f"{prefix}.")


def _stack_blocks(model: PreTrainedModel, stack: _Stack) -> Iterator[Block]:
    owner, owner_path = _owner(model, stack)
    first_of_type: set[Any] = set()
    for index, (path, layer, layouts) in enumerate(stack.layers):
        for layout in layouts:
            name = f"{path}.{layout.name}"
            key = name.removeprefix(f"{model.base_model_prefix}.")
            try:
                found = dict(_read(layer, layout, stack.holder.config, key))
            except UnsupportedModelError:
                if stack.declared:
                    raise
                continue  # resembles a known sublayer by name only
            minimum = 0
            if isinstance(layout, AttentionLayout):
                layer_type = _layer_type(stack.holder.config, index)
                # A decoder reads the length of what it has generated so far from the keys of its first layer (of
                # the first layer of each kind, where kinds of attention have caches of their own).
                needed = layout.cached and _decodes(stack.holder, layer.get_submodule(layout.core))
                minimum = int((needed and layer_type not in first_of_type) or layout.returns is None)
                if layout.cached:
                    first_of_type.add(layer_type)
            local_key = _inside(name, owner_path).removeprefix(f"{owner.base_model_prefix}.")
            for suffix, fields in found.items():
                needed_units = fields.pop("minimum", minimum)
                yield Block(
                    key=f"{key}{suffix}",
                    owner=owner_path,
                    local_key=f"{local_key}{suffix}",
                    stack=stack.path,
                    layer=path,
                    layout=layout,
                    minimum=min(needed_units, fields["units"]),
                    runs=_runs(stack.holder.config),
                    **fields,
                )


def _read(layer: nn.Module, layout: Layout, config: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The fields of the blocks of one sublayer, with what is added to its key for each."""
    if not isinstance(layout, ExpertsLayout):
        yield "", read_block(layer, layout, config, key)
        return
    for expert, fields in enumerate(read_filters(layer, layout, config, key)):
        yield f".{expert}", fields
    whole = read_whole(layer, layout, config, key)
    if whole is not None:
        yield "", whole


def _owner(model: PreTrainedModel, stack: _Stack) -> tuple[PreTrainedModel, str]:
    """The outermost model with the same config as the one that holds the layers, if that config is saved.

    T5 gives its stacks copies of the config, which are not: their owner is the model with the original. Towers beside
    each other that have one config (Video-LLaVA) would be told apart by nothing in it: their owner is the model around.
    """
    chain = list(models_around(model, stack.path))
    saved = {id(config) for config in _configs(model.config)}
    for _, nearest in reversed(chain):
        path, owner = next((path, module) for path, module in chain if module.config is nearest.config)
        if id(owner.config) in saved and not _has_twin(model, owner):
            return owner, path
    return model, ""


def _has_twin(model: PreTrainedModel, owner: PreTrainedModel) -> bool:
    """Whether a model outside of `owner` has the same config."""
    inside = set(owner.modules())
    models = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    return any(module.config is owner.config and module not in inside for module in models)


def _configs(config: Any) -> Iterator[Any]:
    """A config and the configs in it, which are saved with it."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if inner is not None and inner is not config:
            yield from _configs(inner)


def _inside(path: str, prefix: str) -> str:
    return path.removeprefix(f"{prefix}.") if prefix else path


def _layer_type(config: Any, index: int) -> Any:
    types = getattr(config, "layer_types", None)
    return types[index] if isinstance(types, (list, tuple)) and index < len(types) else None


def _decodes(holder: PreTrainedModel, core: nn.Module) -> bool:
    """Whether a model generates token by token and keeps what it has seen in a cache."""
    if getattr(core, "is_causal", False) or getattr(holder.config, "is_decoder", False):
        return True
    return (
        not hasattr(holder.config, "is_decoder") and "past_key_values" in inspect.signature(holder.forward).parameters
    )


def _runs(config: Any) -> int:
    """How often each layer runs: ALBERT calls one group of layers again and again."""
    groups = getattr(config, "num_hidden_groups", None)
    return max(1, config.num_hidden_layers // groups) if isinstance(groups, int) and groups else 1


def _refusal(model: PreTrainedModel) -> str:
    model_type = model.config.model_type
    if family_of(model_type) is not None:
        return f"{type(model).__name__} has no layers of the {model_type!r} family: there is nothing to prune."
    linear = sum(isinstance(module, nn.Linear) for module in model.modules())
    return (
        f"Models of type {model_type!r} ({type(model).__name__}) are not in the family table, and no list of layers"
        f" in it is laid out like one of a known family ({linear} linear layers). In the table:"
        f" {', '.join(supported_model_types())}. To add the type, describe its layers in hf_prune/anatomy/families.py"
        " (CONTRIBUTING.md, 'Adding a model family')."
    )
