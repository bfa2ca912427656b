"""`hf-prune inspect` where a config holds more than a block's name: mixtures of experts, towers with configs each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from hf_prune import RandomPruningConfig, prune_model
from tests.cli.rows import Call
from tests.family_models import heads_of
from tests.mixtures import mixture


def pruned(model: PreTrainedModel, folder: Path, **settings: Any) -> dict[str, Any]:
    """Prunes and saves a model; its report as a dictionary."""
    result = prune_model(model, RandomPruningConfig(sequence_length=8, latency_batch_size=1, **settings))
    result.save_pretrained(folder)
    return result.report.to_dict()


def inspected(call: Call, folder: Path) -> dict[str, Any]:
    result = call("inspect", folder, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["pruning"]


def sizes(report: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {block["key"]: (block["dense_units"], block["kept_units"]) for block in report["blocks"]}


KINDS = {
    "filters of experts": (lambda: mixture("mixtral"), {"flops": 0.7, "exclude_modules": ["self_attn"]}),
    "whole experts": (lambda: mixture("mixtral"), {"params": 0.8, "target_modules": ["experts"]}),
    "towers": (lambda: heads_of("clip")[0].model(), {"params": 0.5}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_and_the_config_say_the_same(kind: str, tmp_path: Path, call: Call) -> None:
    build, settings = KINDS[kind]
    report = pruned(build(), tmp_path, **settings)
    assert inspected(call, tmp_path) == report
    (tmp_path / "pruning_report.json").unlink()
    alone = inspected(call, tmp_path)
    assert sizes(alone) == sizes(report)
    assert any(kept < dense for dense, kept in sizes(report).values())
    for side in ("dense", "pruned"):
        assert alone[side]["unit_parameters"] == report[side]["unit_parameters"]
        assert alone[side]["parameters"] == report[side]["parameters"]
    kept = {block["key"]: block["kept"] for block in report["blocks"] if block["kind"] == "attention"}
    assert {block["key"]: block["kept"] for block in alone["blocks"] if block["kind"] == "attention"} == kept
