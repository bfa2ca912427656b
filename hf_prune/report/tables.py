"""The report as rows of text, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Report
from .number_text import count_text, metric_texts, seconds_text, share_text, speedup_text
from .report import PruningReport

Row = tuple[str, str, str, str]

SUMMARY_HEADER = ("", "dense", "pruned", "pruned vs dense")
BLOCK_HEADER = ("block", "units kept", "share kept", "share of dense FLOPs", "share of pruned FLOPs")
UNIT_NAMES = {"attention": "heads", "feed_forward": "filters", "experts": "experts"}


def summary_rows(report: PruningReport) -> list[Row]:
    """Before and after, one row per quantity.

    Returns:
        Rows of (what, dense, pruned, comparison). The comparison is the share that was kept, for latency the speed-up,
        for a metric the difference pruned - dense.
    """
    dense, pruned = report.dense, report.pruned
    rows = [
        _kept_row(f"FLOPs of attention and FFN, {report.sequence_length} tokens", dense.flops, pruned.flops),
        *_generation_rows(report),
        _kept_row("Parameters of attention and FFN", dense.unit_parameters, pruned.unit_parameters),
        _kept_row("All parameters", dense.parameters, pruned.parameters),
    ]
    if dense.latency is not None and pruned.latency is not None:
        times = seconds_text(dense.latency), seconds_text(pruned.latency)
        rows.append((_latency_label(report), *times, speedup_text(dense.latency, pruned.latency)))
    return [*rows, *metric_rows(report)]


def metric_rows(report: Report) -> list[Row]:
    """One row per metric: (name, dense, pruned, difference)."""
    before, after = report.metrics.get("dense", {}), report.metrics.get("pruned", {})
    return [(name, *metric_texts(before.get(name), after.get(name))) for name in dict.fromkeys((*before, *after))]


def _generation_rows(report: PruningReport) -> list[Row]:
    """The cost of a generated token, in a model that generates."""
    dense, pruned = report.dense.generation_flops, report.pruned.generation_flops
    what = f"FLOPs of attention and FFN, a token generated after {report.sequence_length}"
    return [_kept_row(what, dense, pruned)] if dense else []


def block_rows(report: PruningReport) -> list[tuple[str, str, str, str, str]]:
    """One row per block: (key, units kept of dense units, share kept, share of the FLOPs before, share after)."""
    rows = []
    for block in report.blocks:
        kept = f"{block.kept_units:,} of {block.dense_units:,}"
        before = share_text(block.flops(block.dense_units), report.dense.flops)
        after = share_text(block.flops(block.kept_units), report.pruned.flops)
        rows.append((block.key, kept, share_text(block.kept_units, block.dense_units), before, after))
    return rows


def stage_rows(report: Report) -> list[tuple[str, str, str]]:
    """One row per stage: (name, time, share of the whole), the total last; nothing if no times were taken."""
    total = sum(report.stages.values())
    rows = [(name, seconds_text(seconds), share_text(seconds, total)) for name, seconds in report.stages.items()]
    return [*rows, ("total", seconds_text(total), share_text(total, total))] if rows else []


def kept_text(report: PruningReport, kind: str) -> str:
    """How many units of one kind stay in the whole model, as in `38 of 72 heads`; empty if there are none."""
    blocks = [block for block in report.blocks if ("experts" if block.experts else block.kind) == kind]
    kept, dense = (sum(sizes) for sizes in ([b.kept_units for b in blocks], [b.dense_units for b in blocks]))
    return f"{kept:,} of {dense:,} {UNIT_NAMES[kind]}" if dense else ""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column is aligned left, the others right, as numbers are."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def summary_markdown(report: PruningReport) -> str:
    """The summary rows as a Markdown table."""
    return markdown_table(SUMMARY_HEADER, summary_rows(report))


def block_markdown(report: PruningReport) -> str:
    """The block rows as a Markdown table."""
    return markdown_table(BLOCK_HEADER, [(f"`{key}`", *row) for key, *row in block_rows(report)])


def stage_markdown(report: Report) -> str:
    """The stage rows as a Markdown table, empty without times."""
    rows = stage_rows(report)
    return markdown_table(("stage", "time", "share"), rows) if rows else ""


def report_markdown(report: PruningReport) -> str:
    """The whole report as Markdown: before and after, every block, the time by stage, notes.

    Sections that have nothing to say are left out.
    """
    return sections_markdown(
        report, summary_markdown(report), [("## Blocks", block_markdown(report) if report.blocks else "")]
    )


def sections_markdown(report: Report, summary: str, sections: Sequence[tuple[str, str]]) -> str:
    """A report's sections of (heading, text), between its summary and what all reports end with.

    Sections that have nothing to say are left out.
    """
    everything = [
        (f"# {report.short_name}: {report.strategy_name} pruning", summary),
        *sections,
        ("## Time by stage", stage_markdown(report)),
        ("## Notes", "\n".join(f"- {note}" for note in report.notes)),
    ]
    return "\n\n".join(f"{heading}\n\n{text}" for heading, text in everything if text) + "\n"


def _kept_row(what: str, dense: float, pruned: float) -> Row:
    return what, count_text(dense), count_text(pruned), share_text(pruned, dense)


def _latency_label(report: PruningReport) -> str:
    setting = report.latency_setting
    if setting is None:
        return "Latency"
    where = [setting.device, setting.dtype]
    if setting.device == "cpu":
        where.append("1 thread" if setting.threads == 1 else f"{setting.threads} threads")
    return f"Latency, batch {setting.batch_size} × {setting.sequence_length} tokens ({', '.join(where)})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
