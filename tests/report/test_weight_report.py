"""The report on single weights: as data, as tables, as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hf_prune import PruningError
from hf_prune.report import MatrixSparsity, PruningReport, WeightReport, report_from_dict
from hf_prune.report.terminal import weight_tables

Change = Callable[[dict[str, Any]], Any]


def test_a_report_survives_json(weight_report: WeightReport) -> None:
    data = json.loads(json.dumps(weight_report.to_dict()))
    assert WeightReport.from_dict(data) == weight_report
    bare = replace(weight_report, metrics={}, stages={}, notes=())
    data = {name: value for name, value in bare.to_dict().items() if value not in ({}, [])}
    assert WeightReport.from_dict(data) == bare


def test_the_kinds_of_reports_are_told_apart(weight_report: WeightReport, report: PruningReport) -> None:
    assert report_from_dict(weight_report.to_dict()) == weight_report
    assert report_from_dict(report.to_dict()) == report
    with pytest.raises(PruningError, match="it is a list, not a dictionary"):
        report_from_dict(["matrices"])  # type: ignore[arg-type]


def test_counts(weight_report: WeightReport) -> None:
    assert weight_report.weights == 1_000 + 4 * 400
    assert weight_report.removed == 500 + 100 + 300 + 200
    assert weight_report.short_name == "tiny-sst2"
    assert weight_report.strategy_name == "magnitude"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("matrices"), "lacks 'matrices'"),
        (lambda data: data.update(matrices=5), "not iterable"),
        (lambda data: data.update(matrices=[7]), "mapping"),
        (lambda data: data.update(colour="blue"), "colour"),
        (lambda data: data["matrices"][0].update(colour="blue"), "colour"),
        (lambda data: data["matrices"][0].pop("removed"), "removed"),
        (lambda data: data["matrices"][0].update(name=3), "names and notes must be text, got 3"),
        (lambda data: data["matrices"][0].update(removed=1_001), "got weights=1000, removed=1001"),
        (lambda data: data["matrices"][0].update(removed=-1), "got weights=1000, removed=-1"),
        (lambda data: data["matrices"][0].update(removed=0.5), "got weights=1000, removed=0.5"),
        (lambda data: data["matrices"][0].update(weights=True, removed=0), "got weights=True, removed=0"),
        (lambda data: data["matrices"][0].update(weights=0, removed=0), "got weights=0, removed=0"),
        (lambda data: data["matrices"][0].update(weights="all"), "got weights=all, removed=500"),
        (lambda data: data.update(parameters="many"), "report parameters must be a number, got 'many'"),
        (lambda data: data.update(strategy="magnitude"), "strategy must hold"),
        (lambda data: data.update(model_name=None), "names and notes must be text, got None"),
        (lambda data: data.update(notes=[3]), "names and notes must be text, got 3"),
        (lambda data: data["metrics"]["pruned"].update(f1="good"), "pruned f1 must be a number"),
        (lambda data: data["stages"].update(pruning=True), "stages pruning must be a number"),
    ],
)
def test_a_damaged_report_is_refused(weight_report: WeightReport, change: Change, message: str) -> None:
    data = weight_report.to_dict()
    change(data)
    with pytest.raises(PruningError, match=message):
        WeightReport.from_dict(data)


def test_markdown(weight_report: WeightReport) -> None:
    assert weight_report.to_markdown() == (
        "# tiny-sst2: magnitude pruning\n"
        "\n"
        "|  | weights | removed | sparsity |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| the 5 pruned matrices | 2.60 k | 1.10 k | 42.3 % |\n"
        "| the whole model | 4.40 k | 1.10 k | 25.0 % |\n"
        "\n"
        "|  | dense | pruned | pruned vs dense |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| accuracy | 0.9125 | 0.9000 | -0.0125 |\n"
        "\n"
        "## Kinds of matrices\n"
        "\n"
        "| matrix | weights | removed | sparsity |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| `bert.embeddings.word_embeddings` | 1.00 k | 500 | 50.0 % |\n"
        "| `attention.self.query` | 800 | 400 | 50.0 % |\n"
        "| `output.dense` | 800 | 200 | 25.0 % |\n"
        "\n"
        "## Layers\n"
        "\n"
        "| layer | weights | removed | sparsity |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| outside of the layers | 1.00 k | 500 | 50.0 % |\n"
        "| `bert.encoder.layer.0` | 800 | 100 | 12.5 % |\n"
        "| `bert.encoder.layer.1` | 800 | 500 | 62.5 % |\n"
        "\n"
        "## Time by stage\n"
        "\n"
        "| stage | time | share |\n"
        "| --- | ---: | ---: |\n"
        "| pruning | 1.50 s | 100.0 % |\n"
        "| total | 1.50 s | 100.0 % |\n"
        "\n"
        "## Notes\n"
        "\n"
        "- The schedule ended early.\n"
    )


def test_markdown_of_little(weight_report: WeightReport) -> None:
    bare = replace(weight_report, matrices=(), metrics={}, stages={}, notes=())
    assert bare.to_markdown() == (
        "# tiny-sst2: magnitude pruning\n"
        "\n"
        "|  | weights | removed | sparsity |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| the 0 pruned matrices | 0 | 0 | – |\n"
        "| the whole model | 4.40 k | 0 | 0.0 % |\n"
    )


def test_terminal_tables_have_the_rows_of_the_markdown(weight_report: WeightReport) -> None:
    titles = [str(table.title) for table in weight_tables(weight_report)]
    assert titles == ["tiny-sst2: magnitude pruning", "Metrics", "Kinds of matrices", "Layers"]
    assert len(weight_tables(replace(weight_report, metrics={}))) == 3
    cells = [list(map(str, column.cells)) for column in weight_tables(weight_report)[3].columns]
    assert cells == [
        ["outside of the layers", "bert.encoder.layer.0", "bert.encoder.layer.1"],
        ["1.00 k", "800", "800"],
        ["500", "100", "500"],
        ["50.0 %", "12.5 %", "62.5 %"],
    ]


def test_the_picture_shows_every_matrix(weight_report: WeightReport, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    figure = weight_report.plot(tmp_path / "pruned.png")
    assert (tmp_path / "pruned.png").read_bytes().startswith(b"\x89PNG")
    assert figure.get_suptitle().startswith("tiny-sst2, magnitude pruning: 42.3 % of the weights removed")
    numbers = sorted(float(text.get_text()) for axes in figure.axes for text in axes.texts)
    assert numbers == [0.0, 25.0, 50.0, 50.0, 75.0]
    with pytest.raises(PruningError, match="has no matrices, so there is nothing to draw"):
        replace(weight_report, matrices=()).plot()


def test_one_matrix(weight_report: WeightReport) -> None:
    one = replace(weight_report, matrices=(MatrixSparsity("lm_head.weight", 100, 10),))
    assert "| the pruned matrix | 100 | 10 | 10.0 % |" in one.to_markdown()
