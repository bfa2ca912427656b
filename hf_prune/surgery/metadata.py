"""The `pruning` key of a pruned model's config: what is written, and how it is checked before it is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..anatomy import Block, ModelAnatomy
from ..errors import PruningError
from .plan import PruningPlan

FORMAT_VERSION = 1
KEY = "pruning"
FIELDS = {"format", "library", "blocks", "strategy", "cost", "metrics"}


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
    return data


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
    known = {block.key: block for block in blocks}
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
        _check_entry(known[key], data["blocks"][key])
    return [known[key] for key in found]


def kept_units(data: Mapping[str, Any], block: Block) -> Sequence[int]:
    """The units that stay in a block, counted in the dense model; of filters only the number is known."""
    entry = data["blocks"][block.key]
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
            " (the generation cache reads its length there)."
        )
    _check_heads(block, entry)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_heads(block: Block, entry: Mapping[str, Any]) -> None:
    """Attention blocks list their kept heads, in ascending order; others have none."""
    heads, kept, of = entry.get("heads"), entry["kept"], entry["of"]
    if block.kind != "attention" or not isinstance(heads, (list, tuple)):
        valid = block.kind != "attention" and heads is None
    else:
        valid = len(heads) == kept and all(_is_size(head) and head < of for head in heads)
        valid = valid and all(before < after for before, after in pairwise(heads))
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

    Indices of heads (KV groups) are counted in the original dense model, also when the model was pruned before.

    Args:
        model: the pruned model.
        anatomy: of the model before this cut.
        plan: the cut.
        strategy: the strategy's name and settings.
        cost: dense and pruned cost.
        metrics: measured metrics, dense and pruned.
    """
    for owner, config in _configs(model, anatomy).items():
        earlier = pruning_of(config)
        before = earlier["blocks"] if earlier else {}
        blocks = [block for block in anatomy.blocks if block.owner == owner]
        entries = {block.local_key: _entry(block, plan, before.get(block.local_key)) for block in blocks}
        setattr(
            config,
            KEY,
            {
                "format": FORMAT_VERSION,
                "library": "hf_prune",
                "strategy": dict(strategy),
                "blocks": entries,
                "cost": dict(cost),
                "metrics": dict(metrics),
            },
        )


def write_metrics(model: PreTrainedModel, anatomy: ModelAnatomy, metrics: Mapping[str, Any]) -> None:
    """Puts measured metrics into metadata that is already there."""
    for config in _configs(model, anatomy).values():
        setattr(config, KEY, {**getattr(config, KEY), "metrics": dict(metrics)})


def metadata_snapshot(model: PreTrainedModel, anatomy: ModelAnatomy) -> list[tuple[PreTrainedConfig, Any]]:
    """Every config that holds metadata of the blocks, with what it holds now."""
    return [(config, getattr(config, KEY, None)) for config in _configs(model, anatomy).values()]


def restore_metadata(snapshot: list[tuple[PreTrainedConfig, Any]]) -> None:
    """Puts back what `metadata_snapshot` saw."""
    for config, data in snapshot:
        if data is not None:
            setattr(config, KEY, data)
        elif hasattr(config, KEY):
            delattr(config, KEY)


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
