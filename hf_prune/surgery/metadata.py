"""The `pruning` key of a pruned model's config: what is written, and how it is checked before it is believed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..anatomy import Block, ModelAnatomy, choose_matrices
from ..errors import PruningError
from .layers import layer_index, removed_indices
from .plan import PruningPlan

FORMAT_VERSION = 1
KEY = "pruning"
FIELDS = {"format", "library", "blocks", "layers", "weights", "strategy", "cost", "metrics"}


def pruning_of(config: PreTrainedConfig) -> Mapping[str, Any] | None:
    """The pruning metadata in a config, or None.

    Raises:
        PruningError: there is some, but of an unknown format or with fields missing or foreign.
    """
    data = getattr(config, KEY, None)
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise PruningError(f"config.{KEY} must be a dictionary, got {type(data).__name__}: {str(data)[:80]!r}.")
    if data.get("library", "hf_prune") != "hf_prune":
        return None
    missing = {"format", "blocks"} - set(data)
    foreign = set(data) - FIELDS
    if missing or foreign:
        problem = f"lacks {', '.join(sorted(missing))}" if missing else f"has unknown {', '.join(sorted(foreign))}"
        raise PruningError(f"config.{KEY} {problem}; known fields are {', '.join(sorted(FIELDS))}.")
    if data["format"] != FORMAT_VERSION:
        raise PruningError(
            f"config.{KEY} has format {data['format']!r}, and this hf_prune reads format {FORMAT_VERSION}."
            " Install the hf_prune that wrote the checkpoint."
        )
    if not isinstance(data["blocks"], Mapping):
        raise PruningError(f"config.{KEY}['blocks'] must be a dictionary, got {type(data['blocks']).__name__}.")
    _check_layers(data.get("layers", {}))
    _check_weights(data.get("weights"))
    return data


def _check_weights(weights: Any) -> None:
    """Single weights that were removed: how many of how many, in how many matrices."""
    if weights is None:
        return
    counts = ("removed", "of", "matrices")
    valid = isinstance(weights, Mapping) and set(counts) <= set(weights) <= {*counts, "format"}
    if not valid or not all(_is_size(weights[name]) for name in counts) or weights["removed"] > weights["of"]:
        raise PruningError(
            f"config.{KEY}['weights'] must say how many weights were 'removed' 'of' how many, in how many 'matrices';"
            f" got {str(weights)[:100]}."
        )


def _check_layers(layers: Any) -> None:
    """Lists of layers say how many they were and which of them are left, in ascending order."""
    if not isinstance(layers, Mapping):
        raise PruningError(f"config.{KEY}['layers'] must be a dictionary, got {type(layers).__name__}.")
    for name, entry in layers.items():
        if not isinstance(entry, Mapping) or set(entry) != {"of", "kept"}:
            raise PruningError(f"config.{KEY}: the layers {str(name)[:100]} must have 'kept' and 'of'.")
        of, kept = entry["of"], entry["kept"]
        valid = _is_size(of) and isinstance(kept, (list, tuple)) and len(kept) > 0 and _are_indices(kept, of)
        if not valid:
            raise PruningError(f"config.{KEY}: of {of!r} layers in {str(name)[:100]} it keeps {str(kept)[:100]}.")


def check_layer_counts(data: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Compares the layers that metadata says are left with those that the config builds.

    Args:
        data: from `pruning_of`.
        counts: how many layers the model has in each list, by the list's name in the metadata.

    Raises:
        PruningError: they differ.
    """
    for name, entry in data.get("layers", {}).items():
        if name in counts and counts[name] != len(entry["kept"]):
            raise PruningError(
                f"config.{KEY}: {len(entry['kept'])} layers are left in {name}, but this config builds {counts[name]}."
                " The config was edited after pruning; restore it, or prune the model you want anew."
            )


def blocks_described(data: Mapping[str, Any], blocks: Sequence[Block]) -> list[Block]:
    """Those of a freshly built model's blocks that metadata describes.

    None where the model is only a part of the one that the metadata belongs to, and its blocks have other names there
    (BART's encoder, whose config is BART's): the outer model will find them.

    Args:
        data: from `pruning_of`.
        blocks: of the freshly built (dense) model.

    Raises:
        PruningError: a block that the model lacks, or a size that is not a whole number from 0 to the dense size.
    """
    known: dict[str, list[Block]] = {}
    for block in blocks:
        known.setdefault(saved_name(block, block.key), []).append(block)
    found = [key for key in data["blocks"] if key in known]
    parts = {key.partition(".")[0] for key in found}
    for key in data["blocks"]:
        # Of an encoder-decoder model, one half may be built alone; within a half everything has to be there.
        if key not in known and str(key).partition(".")[0] in parts:
            raise PruningError(
                f"config.{KEY} names the block {str(key)[:100]!r}, which a model with this config does not have;"
                f" it has {', '.join(list(known)[:4])} …"
            )
    for key in found:
        _check_entry(known[key][0], data["blocks"][key])
    return [block for key in found for block in known[key]]


def kept_units(data: Mapping[str, Any], block: Block) -> Sequence[int]:
    """The units that stay in a block, counted in the dense model; of filters only the number is known."""
    entry = data["blocks"][saved_name(block, block.key)]
    return list(entry.get("heads") or range(entry["kept"]))


def _check_entry(block: Block, entry: Any) -> None:
    if not isinstance(entry, Mapping) or {"kept", "of"} - set(entry) or set(entry) - {"kept", "of", "heads"}:
        raise PruningError(
            f"config.{KEY}: {block.key} must have 'kept' and 'of' (and 'heads'), got {str(entry)[:100]}."
        )
    kept, of = entry["kept"], entry["of"]
    if not _is_size(kept) or not _is_size(of) or kept > of:
        raise PruningError(f"config.{KEY}: {block.key} keeps {kept!r} of {of!r} units; 0 ≤ kept ≤ of is needed.")
    if block.units not in (of, kept):
        raise PruningError(
            f"config.{KEY}: {block.key} was cut from {of} units, but this config builds {block.units}. The config was"
            " edited after pruning; restore it, or prune the model you want anew."
        )
    if kept < block.minimum:
        raise PruningError(
            f"config.{KEY}: {block.key} keeps {kept} units, but at least {block.minimum} must stay"
            f" ({block.why_minimum})."
        )
    _check_heads(block, entry)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_indices(values: Sequence[Any], of: int) -> bool:
    """Whether values are places among `of`, in ascending order."""
    inside = all(_is_size(value) and value < of for value in values)
    return inside and all(before < after for before, after in pairwise(values))


def _check_heads(block: Block, entry: Mapping[str, Any]) -> None:
    """Attention blocks list their kept heads, in ascending order; others have none."""
    heads, kept, of = entry.get("heads"), entry["kept"], entry["of"]
    if block.kind != "attention" or not isinstance(heads, (list, tuple)):
        valid = block.kind != "attention" and heads is None
    else:
        valid = len(heads) == kept and _are_indices(heads, of)
    if not valid:
        raise PruningError(f"config.{KEY}: {block.key} keeps {kept} of {of} units, but lists heads {str(heads)[:100]}.")


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
        weights = {"weights": count_zeros(model)} if "weights" in earlier else {}
        setattr(config, KEY, data | ({"layers": layers} if layers else {}) | weights)


def count_zeros(model: PreTrainedModel) -> dict[str, int]:
    """How many single weights are zero in the matrices that are pruned by default, as metadata says it."""
    matrices = choose_matrices(model, lambda names, default: set(default))
    zeros = sum(matrix.parameter.numel() - int(matrix.parameter.count_nonzero()) for matrix in matrices)
    return {"removed": zeros, "of": sum(matrix.parameter.numel() for matrix in matrices), "matrices": len(matrices)}


def stack_name(block: Block, key: str) -> str:
    """The name of the list of layers that a block is in ("encoder.layer"), given the block's own name."""
    return key.removesuffix(f".{block.name}").rpartition(".")[0]


def saved_name(block: Block, key: str) -> str:
    """What metadata calls a block, given its own name: experts, all of one width, have one entry ("….experts.*")."""
    return key if block.group is None else f"{key.rpartition('.')[0]}.*"


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
