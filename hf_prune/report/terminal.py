"""The report as rich renderables, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from .map_rows import kept_shares, short_labels, units_per_bin
from .number_text import share_text
from .report import BlockReport, PruningReport
from .tables import BLOCK_HEADER, SUMMARY_HEADER, UNIT_NAMES, block_rows, kept_text, metric_rows, summary_rows
from .weight_report import WeightReport
from .weight_tables import KIND_HEADER, LAYER_HEADER, WEIGHTS_HEADER, kind_rows, layer_rows, weight_summary_rows

KEPT, REMOVED = "■", "□"
SHADES = "·░▒▓█"
MOST_MARKS = 64
FEWEST_MARKS = 8

_PADDING = 8  # a space on either side of each of the four columns
_KEPT_STYLE, _REMOVED_STYLE = "cyan", "bright_black"


def summary_table(report: PruningReport) -> Table:
    """Before and after, as `summary_rows` has it."""
    title = f"{report.short_name}: {report.strategy_name} pruning"
    return _table(title, SUMMARY_HEADER, summary_rows(report))


def block_table(report: PruningReport) -> Table:
    """Every block: units kept, and its share of the FLOPs before and after."""
    return _table("Blocks", BLOCK_HEADER, block_rows(report), whole=2)


def sweep_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Several cuts of one model, as `sweep_rows` has them."""
    return _table(title, header, rows)


def weight_tables(report: WeightReport) -> list[Table]:
    """How many single weights were removed, the metrics if there are any, and where the removed weights were."""
    title = f"{report.short_name}: {report.strategy_name} pruning"
    tables = [_table(title, WEIGHTS_HEADER, weight_summary_rows(report))]
    if metrics := metric_rows(report):
        tables.append(_table("Metrics", SUMMARY_HEADER, metrics))
    tables.append(_table("Kinds of matrices", KIND_HEADER, kind_rows(report), whole=1))
    return [*tables, _table("Layers", LAYER_HEADER, layer_rows(report), whole=1)]


def heat_map(report: PruningReport, width: int = 80) -> Table:
    """Which units stay, one row per block.

    A block with room for it shows one square per unit, filled where the unit stays. A wider one (an FFN, as a rule)
    shows bins of neighbouring filters, shaded by the share that stays, with one bin size for all of them.

    Args:
        report: the report.
        width: columns of the terminal (`console.width`); the map takes at most 64 of them.
    """
    blocks = report.blocks
    pattern, labels = short_labels([block.key for block in blocks])
    counts = [f"{block.kept_units:,} of {block.dense_units:,}" for block in blocks]
    texts = max(map(len, labels), default=0) + max(map(len, counts), default=0) + len("100.0 %") + _PADDING
    marks = min(MOST_MARKS, max(FEWEST_MARKS, width - texts))
    size = units_per_bin(blocks, marks)
    totals = [text for text in (kept_text(report, kind) for kind in UNIT_NAMES) if text]
    title, legend = Text(f"Kept: {', '.join(totals) or 'nothing to prune'}"), _legend(pattern, size)
    # A table is as wide as its columns, and breaks a title that is wider.
    longest = max(len(line) for line in (title.plain, *legend.plain.splitlines()))
    table = Table(title=title, caption=legend, box=None, show_header=False, min_width=min(width, longest + 2))
    for justify in ("right", "left", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    for block, label, count in zip(blocks, labels, counts, strict=True):
        share = share_text(block.kept_units, block.dense_units)
        row = _marks(block, size if block.dense_units > marks else 1)
        table.add_row(Text(label), row, Text(count), Text(share))
    return table


def _marks(block: BlockReport, size: int) -> Text:
    text = Text()
    for share in kept_shares(block, size):
        square = KEPT if share else REMOVED
        text.append(square if size == 1 else _shade(share), style=_KEPT_STYLE if share else _REMOVED_STYLE)
    return text


def _shade(share: float) -> str:
    """The ends of the scale mean none and all, so that an almost full bin does not look full."""
    if share in (0, 1):
        return SHADES[-1 if share else 0]
    between = SHADES[1:-1]
    return between[int(share * len(between))]


def _legend(pattern: str, size: int) -> Text:
    lines = [] if pattern == "*" else [f"rows: {pattern}"]
    lines.append(f"{KEPT} kept  {REMOVED} removed")
    if size > 1:
        lines[-1] += f"   of {size} filters kept: " + "  ".join(
            f"{shade} {meaning}" for shade, meaning in zip(SHADES, ("none", "<⅓", "<⅔", "<1", "all"), strict=True)
        )
    return Text("\n".join(lines), style="dim")


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], whole: int = 0) -> Table:
    """A table of plain texts (brackets in a name are no markup) whose first `whole` columns never break a line."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=index < whole)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
