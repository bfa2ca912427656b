"""Markdown tables whose source reads well in a terminal, too."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; columns after the first are aligned to the right."""
    cells = [[str(value) for value in row] for row in (headers, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(headers))]
    lines = [_line(row, widths) for row in cells]
    rule = "-" * (widths[0] + 2) + "".join(f"|{'-' * (width + 1)}:" for width in widths[1:])
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |"


def verdict(holds: bool) -> str:
    """Whether a target is reached, as a word."""
    return "yes" if holds else "no"
