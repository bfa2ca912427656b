"""Writes the `pruning` key into the configs of a model that was cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..anatomy import Block, ModelAnatomy
from .layers import layer_index, removed_indices
from .metadata import FORMAT_VERSION, KEY, LABEL_WORDS, pruning_of, saved_name, stack_name
from .plan import PruningPlan
from .weight_metadata import WEIGHTS, count_zeros


def write_metadata(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    plan: PruningPlan,
    strategy: Mapping[str, Any],
    cost: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Puts the `pruning` key into every config that describes some of the blocks.

    Heads (KV groups) and layers are counted in the original dense model, also when the model was pruned before. The
    blocks themselves are named as they are called now: layers after a removed one have moved up.

    Args:
        model: the pruned model.
        anatomy: of the model before this cut.
        plan: the cut.
        strategy: the strategy's name and settings.
        cost: dense and pruned cost.
        metrics: measured metrics, dense and pruned.
    """
    removed = removed_indices(anatomy, plan)
    for owner, config in _configs(model, anatomy).items():
        earlier = pruning_of(config) or {"blocks": {}}
        blocks = [block for block in anatomy.blocks if block.owner == owner]
        entries: dict[str, Any] = {}
        for block in blocks:
            if not plan.removes(block):
                before = earlier["blocks"].get(saved_name(block, block.local_key))
                entries[_name_now(block, removed)] = _entry(block, plan, before)
                entries |= _other_view(block, removed, earlier["blocks"])
        layers = _layer_entries(model, blocks, removed, earlier.get("layers", {}))
        data = {
            "format": FORMAT_VERSION,
            "library": "hf_prune",
            "strategy": dict(strategy),
            "blocks": entries,
            "cost": dict(cost),
            "metrics": dict(metrics),
        }
        data |= {"layers": layers} if layers else {}
        data |= {WEIGHTS: count_zeros(model)} if WEIGHTS in earlier else {}
        data |= {LABEL_WORDS: earlier[LABEL_WORDS]} if LABEL_WORDS in earlier else {}
        setattr(config, KEY, data)


def _name_now(block: Block, removed: Mapping[str, Collection[int]]) -> str:
    """A block's name after layers before its own have been removed."""
    index = layer_index(block)
    place = index - sum(gone < index for gone in removed.get(block.stack, ()))
    return f"{stack_name(block, block.local_key)}.{place}.{saved_name(block, block.name)}"


def _other_view(block: Block, removed: Mapping[str, Collection[int]], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Of experts: what an earlier cut did to their number, where this one is about filters, and the other way round."""
    if block.group is None and block.unit != "experts":
        return {}

    def other(name: str) -> str:
        return f"{name}.*" if block.unit == "experts" else name.removesuffix(".*")

    entry = earlier.get(other(saved_name(block, block.local_key)))
    return {} if entry is None else {other(_name_now(block, removed)): entry}


def _layer_entries(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    removed: Mapping[str, Collection[int]],
    earlier: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """For each list that has lost layers, now or before: how many they were, and which of them are left."""
    entries = {}
    for path, name in {block.stack: stack_name(block, block.local_key) for block in blocks}.items():
        gone = removed.get(path, ())
        before = len(list(model.get_submodule(path).children())) + len(gone)
        known = earlier.get(name, {"of": before, "kept": list(range(before))})
        kept = [original for place, original in enumerate(known["kept"]) if place not in gone]
        if len(kept) < known["of"]:
            entries[name] = {"of": known["of"], "kept": kept}
    return entries


def write_metrics(configs: Iterable[PreTrainedConfig], metrics: Mapping[str, Any]) -> None:
    """Puts measured metrics into metadata that is already there."""
    for config in configs:
        setattr(config, KEY, {**getattr(config, KEY), "metrics": dict(metrics)})


def configs_of(model: PreTrainedModel, anatomy: ModelAnatomy) -> list[PreTrainedConfig]:
    """The configs that metadata about a model's blocks is written to."""
    return list(_configs(model, anatomy).values())


def _configs(model: PreTrainedModel, anatomy: ModelAnatomy) -> dict[str, PreTrainedConfig]:
    """The configs that metadata is written to, by the path of the model they belong to."""
    return {block.owner: model.get_submodule(block.owner).config for block in anatomy.blocks}


def _entry(block: Block, plan: PruningPlan, before: Mapping[str, Any] | None) -> dict[str, Any]:
    units = plan.units(block)
    entry: dict[str, Any] = {"kept": len(units), "of": before["of"] if before else block.units}
    if block.kind == "attention":
        original = before["heads"] if before else range(block.units)
        entry["heads"] = [original[unit] for unit in units]
    return entry
