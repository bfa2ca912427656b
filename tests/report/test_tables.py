from __future__ import annotations

from dataclasses import replace

from hf_prune.report import LatencySetting, PruningReport
from hf_prune.report.tables import block_rows, kept_text, markdown_table, report_markdown, stage_rows, summary_rows

LATENCY = "Latency, batch 32 × 64 tokens (cpu, float32, 2 threads)"


def test_summary_rows(report: PruningReport) -> None:
    assert summary_rows(report) == [
        ("FLOPs of attention and FFN, 64 tokens", "34.0 M", "19.0 M", "55.9 %"),
        ("Parameters of attention and FFN", "13.8 k", "7.15 k", "51.9 %"),
        ("All parameters", "1.23 M", "1.23 M", "99.5 %"),
        (LATENCY, "12.3 ms", "6.15 ms", "2.00× faster"),
        ("loss", "0.2500", "0.3125", "+0.0625"),
        ("accuracy", "0.9125", "0.9000", "-0.0125"),
        ("f1", "–", "0.5000", "–"),
    ]


def test_latency_is_left_out_where_it_was_not_measured(report: PruningReport) -> None:
    assert LATENCY in [row[0] for row in summary_rows(report)]
    for side in ("dense", "pruned"):
        unmeasured = replace(report, **{side: replace(getattr(report, side), latency=None)})
        assert LATENCY not in [row[0] for row in summary_rows(unmeasured)]


def test_the_latency_row_says_where_it_was_measured(report: PruningReport) -> None:
    def label(setting: LatencySetting | None) -> str:
        return summary_rows(replace(report, latency_setting=setting))[3][0]

    assert label(None) == "Latency"
    assert (
        label(LatencySetting(1, 128, "cpu", "float32", 1)) == "Latency, batch 1 × 128 tokens (cpu, float32, 1 thread)"
    )
    assert label(LatencySetting(1, 128, "cuda", "float16", 8)) == "Latency, batch 1 × 128 tokens (cuda, float16)"


def test_block_rows(report: PruningReport) -> None:
    assert block_rows(report) == [
        ("encoder.layer.0.attention", "3 of 4", "75.0 %", "47.1 %", "63.2 %"),
        ("encoder.layer.0.intermediate", "6 of 12", "50.0 %", "17.6 %", "15.8 %"),
        ("encoder.layer.1.attention", "0 of 2", "0.0 %", "23.5 %", "0.0 %"),
        ("encoder.layer.1.intermediate", "8 of 8", "100.0 %", "11.8 %", "21.1 %"),
    ]


def test_nothing_left_has_no_shares(report: PruningReport) -> None:
    gone = replace(report.blocks[2], dense_units=0)
    empty = replace(report, blocks=(gone,), pruned=replace(report.pruned, flops=0))
    assert block_rows(empty) == [("encoder.layer.1.attention", "0 of 0", "–", "0.0 %", "–")]
    assert kept_text(empty, "attention") == ""


def test_units_are_counted_over_the_model(report: PruningReport) -> None:
    assert kept_text(report, "attention") == "3 of 6 heads"
    assert kept_text(report, "feed_forward") == "14 of 20 filters"


def test_stage_rows_add_up(report: PruningReport) -> None:
    assert stage_rows(report) == [
        ("scores", "1 min 30 s", "75.0 %"),
        ("search", "10.0 ms", "0.0 %"),
        ("recovery", "30.0 s", "25.0 %"),
        ("total", "2 min 00 s", "100.0 %"),
    ]
    assert stage_rows(replace(report, stages={})) == []


def test_markdown_cells_cannot_break_the_table() -> None:
    table = markdown_table(("a", "b"), [("x|y", "one\ntwo")])
    assert table.splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y | one two |"]


def test_report_markdown_has_every_section(report: PruningReport) -> None:
    text = report.to_markdown()
    assert text == report_markdown(report)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# tiny-sst2: fisher pruning", "## Blocks", "## Time by stage", "## Notes"]
    assert f"| {LATENCY} | 12.3 ms | 6.15 ms | 2.00× faster |" in text
    assert "| `encoder.layer.0.intermediate` | 6 of 12 | 50.0 % | 17.6 % | 15.8 % |" in text
    assert "| recovery | 30.0 s | 25.0 % |" in text
    assert text.endswith("\n\n- The search is within 0.3 % of the best there can be.\n")


def test_report_markdown_leaves_out_empty_sections(report: PruningReport) -> None:
    text = report_markdown(replace(report, blocks=(), stages={}, notes=()))
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# tiny-sst2: fisher pruning"]
