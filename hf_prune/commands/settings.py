"""The settings of all strategies that prune at one go: each once, with what the strategies say of it."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from ..config import PruningConfig, config_class_of, strategy_names


@dataclass(frozen=True)
class Setting:
    """A setting that one or more strategies have.

    Attributes:
        item: the field, of the first strategy that has it.
        annotated: its type.
        help_text: what it does; by strategy, where they differ.
        budget: whether it is a budget, of which a strategy takes exactly one.
    """

    item: Field[Any]
    annotated: Any
    help_text: str
    budget: bool


def settings_at_once() -> list[Setting]:
    """The settings of every registered strategy that prunes at one go, budgets first.

    What only a training has use for (`IN_TRAINING`) is nothing to set where there is none.
    """
    classes = {name: config_class_of(name) for name in strategy_names()}
    classes = {name: kind for name, kind in classes.items() if kind.at_once}
    owners: dict[str, dict[str, Field[Any]]] = {}
    for strategy, kind in classes.items():
        for item in fields(kind):
            if item.name not in kind.IN_TRAINING:
                owners.setdefault(item.name, {})[strategy] = item
    budgets = {name for kind in classes.values() for name in getattr(kind, "BUDGETS", ())}
    found = [_setting(name, items, classes, name in budgets) for name, items in owners.items()]
    return sorted(found, key=lambda setting: not setting.budget)


def default_text(items: Sequence[Field[Any]], strategies: Sequence[str] = ()) -> str:
    """The default as the end of a help text, by strategy where they differ; empty where nothing is set by default."""
    texts = [_shown(item) for item in items]
    if len(set(texts)) == 1:
        return f" Default: {texts[0]}." if texts[0] else ""
    named = [f"{text or 'none'} ({strategy})" for text, strategy in zip(texts, strategies, strict=True)]
    return f" Default: {', '.join(named)}."


def _setting(name: str, items: dict[str, Field[Any]], classes: dict[str, type[PruningConfig]], budget: bool) -> Setting:
    first = next(iter(items))
    texts: dict[str, list[str]] = {}
    for strategy, item in items.items():
        texts.setdefault(item.metadata.get("help", ""), []).append(strategy)
    if len(texts) == 1:
        help_text = next(iter(texts))
    else:
        help_text = " ".join(f"With {' and '.join(strategies)}: {text}" for text, strategies in texts.items())
    help_text += default_text(list(items.values()), list(items))
    if len(items) < len(classes):
        help_text += f" (Strategy: {', '.join(items)}.)"
    return Setting(items[first], typing.get_type_hints(classes[first])[name], help_text, budget)


def _shown(item: Field[Any]) -> str:
    """A default as people type it; nothing for what is absent or off."""
    if any(item.default is nothing for nothing in (None, False, MISSING)):
        return ""
    return str(item.default).lower() if isinstance(item.default, bool) else str(item.default)
