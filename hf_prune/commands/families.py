"""`hf-prune families`: what the family table holds."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text
from transformers.models.auto import modeling_auto

from ..anatomy import FAMILIES, AttentionLayout, Family
from .tasks import TASKS

_GENERATORS = ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES")
_COLUMNS = ("heads", "filters", "generates", "tasks")


def family_rows() -> list[dict[str, Any]]:
    """One entry per model type, in alphabetical order.

    Returns:
        `model_type`; `heads` (or KV groups) and `filters`, the sublayers in which they can be removed; `generates`,
        whether transformers has a language model of the type that generates text; `tasks` that `hf-prune run`
        prepares data for.
    """
    rows = [_row(family, model_type) for family in FAMILIES for model_type in family.model_types]
    return sorted(rows, key=lambda row: row["model_type"])


def families_table(rows: list[dict[str, Any]]) -> Table:
    """The entries as a table."""
    table = Table(
        title=Text("Supported model types"),
        caption=Text(
            "Heads are removed in whole KV groups where several share a key. Every task head can be pruned in Python;"
            " 'tasks' are those that `hf-prune run` prepares data for. Models of other types are tried with all of"
            " these layouts, and pruned if an example proves that the layout fits."
        ),
        box=box.SIMPLE_HEAD,
    )
    for header in ("model type", "heads or KV groups in", "filters in", "generates", "tasks"):
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(row["model_type"], *(_text(row[name]) for name in _COLUMNS))
    return table


def _text(value: bool | list[str]) -> str:
    if isinstance(value, bool):
        return "yes" if value else "–"
    return ", ".join(value) or "–"


def _row(family: Family, model_type: str) -> dict[str, Any]:
    heads = [layout.name for layout in family.sublayers if isinstance(layout, AttentionLayout)]
    filters = [layout.name for layout in family.sublayers if not isinstance(layout, AttentionLayout)]
    return {
        "model_type": model_type,
        "heads": list(dict.fromkeys(heads)),
        "filters": list(dict.fromkeys(filters)),
        "generates": any(model_type in getattr(modeling_auto, name) for name in _GENERATORS),
        "tasks": [task.name for task in TASKS if task.architectures(model_type)],
    }
