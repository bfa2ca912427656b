"""What has to follow when layers are removed: entries of the config, and what modules know about their place.

Nothing is taken on trust from names. The model is built twice without weights, from its config and from the trimmed
one, and the difference is looked at: every layer that stays must come out as it was, but for its place, and so must
everything around the layers. What differs in the right way is what has to be set in the model; anything else means
that the config cannot say that these layers are gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ..errors import PruningError

# How configs call their numbers of layers, and lists with an entry per layer.
_COUNT = re.compile(r"layer|depth|block")
_LIST = re.compile(r"layer|type|pattern|block|theta|mode")
_NOT_A_LIST = {"architectures", "stage_names"}
_BACKBONE_ENTRIES = {"_out_features", "_out_indices"}

Traits = dict[tuple[str, str], Any]
Change = tuple[Any, str, Any]


@dataclass(frozen=True)
class StackCut:
    """Which layers of one list stay.

    Attributes:
        path: of the list, from the root.
        owner: path of the model whose saved config says how many layers there are.
        kept: places of the layers that stay, in ascending order.
        total: how many layers there are now.
    """

    path: str
    owner: str
    kept: tuple[int, ...]
    total: int

    @property
    def path_in_owner(self) -> str:
        """Path of the list from its owner."""
        return self.path.removeprefix(f"{self.owner}.") if self.owner else self.path


def changes_of_removal(model: nn.Module, cuts: Sequence[StackCut]) -> list[Change]:
    """What has to be set, besides shortening the lists themselves, as (module or config, attribute, value).

    Args:
        model: the model, which is not changed.
        cuts: at most one per list of layers.

    Raises:
        PruningError: the config has no entries that say so.
    """
    changes: list[Change] = []
    states: dict[str, tuple[PreTrainedConfig, nn.Module]] = {}
    for cut in cuts:
        owner: Any = model.get_submodule(cut.owner)
        if cut.owner not in states:
            config = _copied(owner.config)
            states[cut.owner] = (config, _built(type(owner), config))
        _check_buffers(owner.get_submodule(cut.path_in_owner), cut)
        trimmed, before, after = _trimmed(type(owner), *states[cut.owner], cut)
        changes += _changes_in_modules(owner, before, after, cut)
        changes += _changes_in_configs(owner, before, after)
        states[cut.owner] = (trimmed, after)
    return changes


def _copied(config: PreTrainedConfig, **entries: Any) -> PreTrainedConfig:
    """The config as it would be read back from a file, without any pruning, with some entries replaced."""
    data = {**config.to_dict(), **entries}
    data.pop("pruning", None)
    return type(config).from_dict(data)


def _built(model_class: Callable[[PreTrainedConfig], Any], config: PreTrainedConfig) -> nn.Module:
    with torch.random.fork_rng([]), torch.device("meta"), no_init_weights():
        model: nn.Module = model_class(config)
    return model


def _trimmed(
    model_class: Callable[[PreTrainedConfig], Any], config: PreTrainedConfig, before: nn.Module, cut: StackCut
) -> tuple[PreTrainedConfig, nn.Module, nn.Module]:
    """The config that describes the model without the layers, with the models before and after."""
    reasons = []
    for entries in _trials(config, cut):
        names = ", ".join(entries)
        try:
            trimmed = _copied(config, **entries)
            after = _built(model_class, trimmed)
            found = len(after.get_submodule(cut.path_in_owner))  # type: ignore[arg-type]
        except Exception as error:  # configs and modelling code refuse what does not fit in as many ways as there are
            reasons.append(f"{names}: {str(error)[:200]}")
            continue
        if found != len(cut.kept):
            continue
        problem = next(_mismatches(before, after, cut), None)
        if problem is None:
            return trimmed, before, after
        reasons.append(f"{names}: {problem}")
    raise PruningError(
        f"Layers of {cut.path} cannot be removed, because {type(config).__name__} has no entries that would say so"
        f" ({'; '.join(reasons) or f'none that is {cut.total} now'}). Empty their heads and filters instead."
    )


def _trials(config: PreTrainedConfig, cut: StackCut) -> Iterator[dict[str, Any]]:
    """Config entries that may say that the layers are gone: a count, alone or with the lists of that length."""
    entries = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    lists: dict[str, Any] = {
        name: [value[place] for place in cut.kept]
        for name, value in entries.items()
        if isinstance(value, (list, tuple)) and len(value) == cut.total and _LIST.search(name)
        if name not in _NOT_A_LIST
    }
    if "attention_types" in entries and "attention_layers" in lists:  # GPT-Neo writes runs of kinds
        lists["attention_types"] = [[[kind], 1] for kind in lists["attention_layers"]]
    if config.__dict__.get("_out_features") == (getattr(config, "stage_names", None) or [None])[-1:]:
        lists |= {"out_features": None, "out_indices": None}  # a backbone's default: the last layer
    for name, value in entries.items():
        if _COUNT.search(name) and isinstance(value, int) and not isinstance(value, bool) and value == cut.total:
            for added in [lists, {}] if lists else [{}]:
                yield {name: len(cut.kept), **added}


def _traits(root: nn.Module) -> Traits:
    """What a module and those in it are, as far as it does not depend on weights: (path, attribute) → value."""
    found: Traits = {}
    for path, module in root.named_modules():
        # By name: parametrised modules have a class each.
        found[path, "class"] = f"{type(module).__module__}.{type(module).__qualname__}"
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            found[path, name] = None if tensor is None else tuple(tensor.shape)
        for name, value in vars(module).items():
            if not name.startswith("_") and name != "training" and _is_plain(value):
                found[path, name] = value
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _mismatches(before: nn.Module, after: nn.Module, cut: StackCut) -> Iterator[str]:
    """What is not as it was in the layers that stay or around them."""
    for where, old, new, allowed in _differences(before, after, cut):
        if not allowed:
            yield f"{'.'.join(filter(None, where))} would change from {old} to {new}"


def _differences(
    before: nn.Module, after: nn.Module, cut: StackCut
) -> Iterator[tuple[tuple[str, str], Any, Any, bool]]:
    """(path before and attribute, value before, value after, whether it may differ)."""
    stack = cut.path_in_owner
    around = [_outside(_traits(root), stack) for root in (before, after)]
    for where, old, new in _unequal(*around):
        yield where, old, new, _follows_cut(where[1], old, new, cut)
    for place, index in enumerate(cut.kept):
        layers = [root.get_submodule(f"{stack}.{number}") for root, number in ((before, index), (after, place))]
        for (path, name), old, new in _unequal(*map(_traits, layers)):
            allowed = _are_counts(old, new) and (old, new) == (index, place)
            where = (f"{stack}.{index}.{path}".rstrip("."), name)
            yield where, old, new, allowed or _follows_cut(name, old, new, cut)


def _outside(traits: Traits, stack: str) -> Traits:
    return {where: value for where, value in traits.items() if not f"{where[0]}.".startswith(f"{stack}.")}


def _unequal(one: Traits, other: Traits) -> Iterator[tuple[tuple[str, str], Any, Any]]:
    for where in {**one, **other}:
        old, new = one.get(where), other.get(where)
        if old != new or (where in one) != (where in other):
            yield where, old, new


def _follows_cut(name: str, old: Any, new: Any, cut: StackCut) -> bool:
    """Whether an attribute says how many layers there are, something of each, or how much is dropped in training."""
    if isinstance(old, (list, tuple)) and len(old) == cut.total:
        return bool(new == type(old)(old[place] for place in cut.kept))
    if "drop" in name:
        return isinstance(old, (int, float)) and isinstance(new, (int, float))
    return _are_counts(old, new) and (old, new) == (cut.total, len(cut.kept))


def _are_counts(old: Any, new: Any) -> bool:
    return type(old) is int and type(new) is int


def _changes_in_modules(owner: nn.Module, before: nn.Module, after: nn.Module, cut: StackCut) -> Iterator[Change]:
    for (path, name), old, new, _ in _differences(before, after, cut):
        module = owner.get_submodule(path)
        if vars(module).get(name) == old:
            yield module, name, new


def _changes_in_configs(owner: nn.Module, before: nn.Module, after: nn.Module) -> Iterator[Change]:
    """Entries of the owner's config, and of the copies of it that inner models hold."""
    seen: set[tuple[int, str]] = set()
    for path, module in before.named_modules():
        if not isinstance(module, PreTrainedModel):
            continue
        config: Any = owner.get_submodule(path).config
        old, new = vars(module.config), vars(after.get_submodule(path).config)
        for name in _changed_entries(old, new):
            if (id(config), name) not in seen:
                seen.add((id(config), name))
                yield config, name, new[name]


def _changed_entries(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name, value in new.items():
        is_own = not name.startswith("_") or name in _BACKBONE_ENTRIES
        if is_own and not isinstance(value, PreTrainedConfig) and old.get(name) != value:
            yield name


def _check_buffers(layers: nn.Module, cut: StackCut) -> None:
    """Refuses layers with buffers that are not saved and depend on the place: loading would compute others."""
    kinds: dict[Any, dict[str, torch.Tensor]] = {}
    for index, layer in layers.named_children():
        unsaved = dict(_unsaved_buffers(layer))
        if not unsaved:
            continue
        traits = {where: value for where, value in _traits(layer).items() if isinstance(value, (str, bool)) and value}
        alike = kinds.setdefault(frozenset(traits.items()), unsaved)
        for name, buffer in unsaved.items():
            if name not in alike or not torch.equal(buffer, alike[name]):
                raise PruningError(
                    f"Layers of {cut.path} cannot be removed: {cut.path}.{index}.{name} depends on the layer's place,"
                    " and is computed anew on loading. Empty heads and filters instead."
                )


def _unsaved_buffers(layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in layer.named_modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None and not buffer.is_meta:
                yield f"{path}.{name}".lstrip("."), buffer
