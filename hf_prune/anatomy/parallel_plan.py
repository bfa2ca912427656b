"""Layouts from transformers' own tensor-parallel plans, for models whose names are not in the table.

A plan says which projections are split by their rows ("colwise": they produce units) and which by their columns
("rowwise": they read units), which is what a layout says, too. What it does not say, what each projection makes, is
taken from its name; whether all that is right is for the proof to find out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .layouts import AttentionLayout, FeedForwardLayout, Layout, Makes

_MAKES: Mapping[str, Makes] = {"q": "query", "k": "key", "v": "value"}


def planned_sublayers(config: Any, layers: str) -> tuple[Layout, ...]:
    """The layouts that a config's plan implies for the layers in a list.

    Args:
        config: of the model that holds the list.
        layers: path of the list inside that model ("layers").
    """
    prefix = f"{layers}.*."
    plan: Mapping[str, Any] = getattr(config, "base_model_tp_plan", None) or {}
    inside = {path.removeprefix(prefix): str(style) for path, style in plan.items() if path.startswith(prefix)}
    found = []
    for output, style in inside.items():
        parent = output.rpartition(".")[0]
        if "rowwise" in style and parent and "*" not in output:
            siblings = [path for path in inside if path.rpartition(".")[0] == parent]
            layout = _layout(parent, [path for path in siblings if "colwise" in inside[path]], output)
            found += [layout] if layout is not None else []
    return tuple(found)


def _layout(parent: str, inputs: list[str], output: str) -> Layout | None:
    if not inputs:
        return None
    makes = {path: _MAKES.get(_letter(path)) for path in inputs}
    if sorted(map(str, makes.values())) == ["key", "query", "value"]:
        return AttentionLayout(parent, parent, {path: made for path, made in makes.items() if made}, output)
    return FeedForwardLayout(parent, tuple(inputs), output) if len(inputs) <= 2 else None


def _letter(path: str) -> str:
    """The letter that says query, key or value in names such as `q_proj`, `wq`, `to_q`, `query`."""
    name = path.rpartition(".")[2].lower().removeprefix("to_").removeprefix("w")
    return name[:1]
