from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hf_prune.errors import PruningError
from hf_prune.report import BlockReport, PruningReport

Change = Callable[[dict[str, Any]], Any]


def test_a_report_survives_json(report: PruningReport) -> None:
    assert PruningReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_what_was_not_measured_survives_json(report: PruningReport) -> None:
    bare = replace(
        report,
        dense=replace(report.dense, latency=None),
        pruned=replace(report.pruned, latency=None),
        latency_setting=None,
        stages={},
        metrics={},
        notes=(),
    )
    assert PruningReport.from_dict(json.loads(json.dumps(bare.to_dict()))) == bare
    data = {key: value for key, value in bare.to_dict().items() if value not in ({}, [], None)}
    assert PruningReport.from_dict(data) == bare


def test_to_dict_is_a_copy(report: PruningReport) -> None:
    report.to_dict()["metrics"]["dense"]["loss"] = 0.0
    assert report.metrics["dense"]["loss"] == 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("dense"), "lacks 'dense'"),
        (lambda data: data["blocks"][0].pop("kept"), "lacks 'kept'"),
        (lambda data: data.pop("strategy"), "strategy"),
        (lambda data: data.update(colour="blue"), "colour"),
        (lambda data: data["dense"].update(colour="blue"), "colour"),
        (lambda data: data["latency_setting"].update(colour="blue"), "colour"),
        (lambda data: data.update(blocks=5), "not iterable"),
        (lambda data: data.update(metrics=[1]), "list"),
        (lambda data: data["dense"].update(flops="many"), "dense flops must be a number, got 'many'"),
        (lambda data: data["pruned"].update(parameters=None), "pruned parameters must be a number"),
        (lambda data: data["metrics"]["pruned"].update(f1="good"), "pruned f1 must be a number"),
        (lambda data: data["stages"].update(scores=True), "stages scores must be a number"),
        (lambda data: data.update(sequence_length=None), "sequence_length must be a number"),
        (lambda data: data["blocks"][1].update(flops_per_unit="x"), "flops_per_unit must be a number"),
        (lambda data: data.update(model_name=7), "names and notes must be text, got 7"),
        (lambda data: data.update(notes=[["x"]]), "names and notes must be text"),
        (lambda data: data.update(strategy={"flops": 0.5}), "'strategy' name"),
        (lambda data: data.update(strategy="fisher"), "'strategy' name"),
        (lambda data: data["blocks"][0].update(kind="conv"), "attention, feed_forward, got 'conv'"),
        (lambda data: data["blocks"][0].update(kept=[0, 1]), "encoder.layer.0.attention: the kept indices must be 3"),
        (lambda data: data["blocks"][0].update(kept=[0, 1, 4]), "from 0 to 3"),
        (lambda data: data["blocks"][0].update(kept=[-1, 1, 3]), "from 0 to 3"),
        (lambda data: data["blocks"][0].update(kept=[1, 0, 3]), "ascending"),
        (lambda data: data["blocks"][0].update(kept=[0, 1, 1]), "ascending"),
        (lambda data: data["blocks"][0].update(kept="013"), "ascending"),
    ],
)
def test_a_damaged_report_is_refused(report: PruningReport, change: Change, message: str) -> None:
    data = report.to_dict()
    change(data)
    with pytest.raises(PruningError, match=message):
        PruningReport.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "report", 3])
def test_something_else_is_refused(data: Any) -> None:
    with pytest.raises(PruningError, match=f"it is a {type(data).__name__}, not a dictionary"):
        PruningReport.from_dict(data)


def test_a_block_checks_its_indices() -> None:
    with pytest.raises(PruningError, match=r"from 0 to 2, got 2: \[1, 5\]"):
        BlockReport("0.attention", "attention", 3, 2, (1, 5), 1, 1)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("someone/tiny-sst2", "tiny-sst2"),
        ("tiny-sst2", "tiny-sst2"),
        ("/home/a b/models/tiny-sst2/", "tiny-sst2"),
        ("C:\\models\\tiny-sst2", "tiny-sst2"),
        ("", "bert"),
    ],
)
def test_the_short_name_has_no_folders(report: PruningReport, name: str, short: str) -> None:
    assert replace(report, model_name=name).short_name == short
