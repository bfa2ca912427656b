from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console, RenderableType

from hf_prune.report import BlockReport, PruningReport
from hf_prune.report.number_text import share_text
from hf_prune.report.tables import block_rows, summary_rows
from hf_prune.report.terminal import KEPT, REMOVED, SHADES, block_table, heat_map, summary_table


def shown(renderable: RenderableType, width: int) -> list[str]:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(renderable)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def wide_report(report: PruningReport) -> PruningReport:
    """Six layers of BERT width, more of them gone the deeper they lie."""
    blocks: list[BlockReport] = []
    for layer in range(6):
        heads, filters = tuple(range(12 - 2 * layer)), tuple(range(0, 3072, layer + 1))
        blocks.append(BlockReport(f"encoder.layer.{layer}.attention", "attention", 12, len(heads), heads, 9, 9))
        name = f"encoder.layer.{layer}.intermediate"
        blocks.append(BlockReport(name, "feed_forward", 3072, len(filters), filters, 1, 1))
    return replace(report, blocks=tuple(blocks))


def test_summary_and_block_tables_show_the_rows(report: PruningReport) -> None:
    for table, rows in ((summary_table(report), summary_rows(report)), (block_table(report), block_rows(report))):
        lines = shown(table, 120)
        for row in rows:
            assert any(all(cell in line for cell in row) for line in lines), row


def test_block_names_and_counts_are_whole_in_a_narrow_terminal(report: PruningReport) -> None:
    lines = shown(block_table(wide_report(report)), 80)
    assert max(map(len, lines)) <= 80
    for key, kept, *_ in block_rows(wide_report(report)):
        assert any(key in line and kept in line for line in lines)


def test_names_are_not_read_as_markup(report: PruningReport) -> None:
    odd = replace(report, model_name="[red]x", metrics={"dense": {"[bold]": 1.0}})
    text = "\n".join(shown(summary_table(odd), 120))
    assert "[red]x" in text
    assert "[bold]" in text


def test_heat_map_of_a_small_model(report: PruningReport) -> None:
    assert [line.strip() for line in shown(heat_map(report), 80) if line] == [
        "Kept: 3 of 6 heads, 14 of 20 filters",
        "0.attention  ■■□■           3 of 4   75.0 %",
        "0.intermediate  ■■■■□□■□□□□■  6 of 12   50.0 %",
        "1.attention  □□             0 of 2    0.0 %",
        "1.intermediate  ■■■■■■■■       8 of 8  100.0 %",
        "rows: encoder.layer.*",
        "■ kept  □ removed",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_heat_map_fits_the_terminal(report: PruningReport, width: int) -> None:
    wide = wide_report(report)
    lines = shown(heat_map(wide, width), width)
    assert max(map(len, lines)) <= width
    for block in wide.blocks:
        label = block.key.removeprefix("encoder.layer.")
        (line,) = [line for line in lines if line.strip().startswith(label)]
        assert f"{block.kept_units:,} of {block.dense_units:,}" in line
        assert line.endswith(share_text(block.kept_units, block.dense_units))
        if block.kind == "attention":
            assert (line.count(KEPT), line.count(REMOVED)) == (block.kept_units, 12 - block.kept_units)
        else:
            assert 8 <= sum(line.count(shade) for shade in SHADES) <= 64
            assert KEPT not in line


def test_shades_tell_none_some_and_all_apart(report: PruningReport) -> None:
    # In bins of 50: nothing, one filter, a half, all but one, everything.
    kept = [*range(50, 51), *range(100, 125), *range(150, 199), *range(200, 250)]
    block = BlockReport("ffn", "feed_forward", 50 * 64, len(kept), tuple(kept), 1, 1)
    lines = shown(heat_map(replace(report, blocks=(block,)), 200), 200)
    row = next(line for line in lines if line.strip().startswith("ffn"))
    assert row.split()[1] == "·░▒▓█" + "·" * 59
    assert "of 50 filters kept: · none  ░ <⅓  ▒ <⅔  ▓ <1  █ all" in "\n".join(lines)


def test_blocks_without_units_and_reports_without_blocks(report: PruningReport) -> None:
    gone = replace(report.blocks[2], dense_units=0)
    assert any("0 of 0" in line for line in shown(heat_map(replace(report, blocks=(gone,))), 80))
    assert "Kept: nothing to prune" in "\n".join(shown(heat_map(replace(report, blocks=())), 80))
