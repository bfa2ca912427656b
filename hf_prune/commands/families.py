"""`hf-prune families`: what the family table holds."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..anatomy import FAMILIES, AttentionLayout, Family
from .tasks import TASKS


def family_rows() -> list[dict[str, Any]]:
    """One entry per model type, in alphabetical order.

    Returns:
        `model_type`; `heads` and `filters`, the sublayers in which they can be removed; `tasks` that `hf-prune run`
        prepares data for.
    """
    rows = [_row(family, model_type) for family in FAMILIES for model_type in family.model_types]
    return sorted(rows, key=lambda row: row["model_type"])


def families_table(rows: list[dict[str, Any]]) -> Table:
    """The entries as a table."""
    table = Table(
        title=Text("Supported model types"),
        caption=Text(
            "Every task head can be pruned in Python; 'tasks' are those that `hf-prune run` prepares data for."
        ),
        box=box.SIMPLE_HEAD,
    )
    for header in ("model type", "heads in", "filters in", "tasks"):
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(row["model_type"], *(", ".join(row[name]) or "–" for name in ("heads", "filters", "tasks")))
    return table


def _row(family: Family, model_type: str) -> dict[str, Any]:
    heads = [layout.name for layout in family.sublayers if isinstance(layout, AttentionLayout)]
    filters = [layout.name for layout in family.sublayers if not isinstance(layout, AttentionLayout)]
    tasks = [task.name for task in TASKS if task.architectures(model_type)]
    return {"model_type": model_type, "heads": heads, "filters": filters, "tasks": tasks}
