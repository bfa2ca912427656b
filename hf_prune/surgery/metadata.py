"""The `pruning` key of a pruned model's config: what it says, and how it is checked before it is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..anatomy import Block
from ..errors import PruningError
from ..gates.label_word_head import HeadForm

FORMAT_VERSION = 1
KEY = "pruning"
LABEL_WORDS = "label_words"
FIELDS = {"format", "library", "blocks", "layers", "weights", LABEL_WORDS, "strategy", "cost", "metrics"}


def pruning_of(config: PreTrainedConfig) -> Mapping[str, Any] | None:
    """The pruning metadata in a config, or None; what others have put under the same key is not looked at.

    Raises:
        PruningError: there is some, but of an unknown format or with fields missing or foreign.
    """
    data = getattr(config, KEY, None)
    if not isinstance(data, Mapping) or not _is_ours(data):
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
    if LABEL_WORDS in data:
        HeadForm.from_dict(data[LABEL_WORDS])
    return data


def pruned_configs(model: PreTrainedModel) -> list[tuple[PreTrainedConfig, Mapping[str, Any]]]:
    """Every config in a model that has pruning metadata, once each, with that: parts of a model may have their own."""
    configs = {id(one.config): one.config for one in model.modules() if isinstance(one, PreTrainedModel)}
    return [(config, data) for config in configs.values() if (data := pruning_of(config)) is not None]


def _is_ours(data: Mapping[str, Any]) -> bool:
    return bool(data["library"] == "hf_prune" if "library" in data else {"format", "blocks"} & data.keys())


def pruning_or_new(config: PreTrainedConfig) -> dict[str, Any]:
    """A dictionary of its own with the pruning metadata in a config, or with none about any block yet.

    Raises:
        PruningError: as `pruning_of`.
    """
    return dict(pruning_of(config) or {"format": FORMAT_VERSION, "library": "hf_prune", "blocks": {}})


def _check_weights(weights: Any) -> None:
    """Single weights that were removed: how many of how many, in how many matrices."""
    if weights is None:
        return
    valid = isinstance(weights, Mapping) and set(weights) == {"removed", "of", "matrices"}
    if not valid or not all(map(_is_size, weights.values())) or weights["removed"] > weights["of"]:
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


def stack_name(block: Block, key: str) -> str:
    """The name of the list of layers that a block is in ("encoder.layer"), given the block's own name."""
    return key.removesuffix(f".{block.name}").rpartition(".")[0]


def saved_name(block: Block, key: str) -> str:
    """What metadata calls a block, given its own name: experts, all of one width, have one entry ("….experts.*")."""
    return key if block.group is None else f"{key.rpartition('.')[0]}.*"


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
