"""The report on single weights as rows of text, and as Markdown."""

from __future__ import annotations

from ..anatomy import matrix_name
from .number_text import count_text, share_text
from .sparsity_tables import OUTSIDE, SPARSITY_COLUMNS, grouped_rows, sparsity_row
from .tables import SUMMARY_HEADER, Row, markdown_table, metric_rows, sections_markdown
from .weight_report import WeightReport

WEIGHTS_HEADER = ("", *SPARSITY_COLUMNS)
KIND_HEADER = ("matrix", *SPARSITY_COLUMNS)
LAYER_HEADER = ("layer", *SPARSITY_COLUMNS)


def weight_summary_rows(report: WeightReport) -> list[Row]:
    """Rows of (what, weights, removed, sparsity): the pruned matrices, and the whole model."""
    whole = count_text(report.parameters), count_text(report.removed), share_text(report.removed, report.parameters)
    return [sparsity_row(matrices_text(report), report.matrices), ("the whole model", *whole)]


def matrices_text(report: WeightReport) -> str:
    """How many matrices were pruned."""
    count = len(report.matrices)
    return "the pruned matrix" if count == 1 else f"the {count:,} pruned matrices"


def kind_rows(report: WeightReport) -> list[Row]:
    """Rows of (kind of matrix, weights, removed, sparsity)."""
    return grouped_rows(report.matrices, lambda row: matrix_name(row.name).kind)


def layer_rows(report: WeightReport) -> list[Row]:
    """Rows of (layer, weights, removed, sparsity); what is in no layer comes under one name."""
    return grouped_rows(report.matrices, lambda row: matrix_name(row.name).layer or OUTSIDE)


def weight_summary_markdown(report: WeightReport) -> str:
    """The summary and, where there are any, the metrics as Markdown tables."""
    tables = [markdown_table(WEIGHTS_HEADER, weight_summary_rows(report))]
    if metrics := metric_rows(report):
        tables.append(markdown_table(SUMMARY_HEADER, metrics))
    return "\n\n".join(tables)


def kind_markdown(report: WeightReport) -> str:
    """The rows by kind of matrix as a Markdown table, empty without matrices."""
    return markdown_table(KIND_HEADER, _quoted(kind_rows(report))) if report.matrices else ""


def layer_markdown(report: WeightReport) -> str:
    """The rows by layer as a Markdown table, empty without matrices."""
    return markdown_table(LAYER_HEADER, _quoted(layer_rows(report))) if report.matrices else ""


def weight_report_markdown(report: WeightReport) -> str:
    """The whole report as Markdown: weights removed, metrics, by kind of matrix, by layer, time by stage, notes.

    Sections that have nothing to say are left out.
    """
    sections = [("## Kinds of matrices", kind_markdown(report)), ("## Layers", layer_markdown(report))]
    return sections_markdown(report, weight_summary_markdown(report), sections)


def _quoted(rows: list[Row]) -> list[Row]:
    return [(row[0] if row[0] == OUTSIDE else f"`{row[0]}`", *row[1:]) for row in rows]
