"""Processes find the same thresholds and remove the same, though each sees other examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification

from hf_prune.report import TradeOffCurve
from tests.distributed.snip_shards import REDUCTIONS
from tests.distributed.written import agreed, assert_close, metadata

SCRIPT = "snip_shards.py"


def lines_of(folder: Path, reduction: str, processes: int) -> list[dict[str, float]]:
    """What was logged of every step."""
    found: list[dict[str, float]] = json.loads(metadata(folder / f"{reduction}-{processes}-0.safetensors")["lines"])
    return found


def test_gates_per_example_are_those_of_one_process(alone: Path, together: tuple[Path, int]) -> None:
    """The largest activation of a mini-batch depends on how examples are shared out, that of an example does not."""
    folder, processes = together
    assert_close(agreed(folder, "example", processes), agreed(alone, "example", 1))
    lines, expected = lines_of(folder, "example", processes), lines_of(alone, "example", 1)
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_processes_agree(together: tuple[Path, int], reduction: str) -> None:
    folder, processes = together
    found = agreed(folder, reduction, processes)
    lines = lines_of(folder, reduction, processes)
    assert len({line["epsilon_heads"] for line in lines if "epsilon_heads" in line}) == 2
    curve = TradeOffCurve.load(folder / f"out-{reduction}")
    about = metadata(folder / f"{reduction}-{processes}-0.safetensors")
    assert curve == TradeOffCurve.from_json(about["curve"])
    assert [level.params for level in curve.levels] == sorted({level.params for level in curve.levels}, reverse=True)
    assert len(curve) == 3
    last = BertForSequenceClassification.from_pretrained(
        folder / f"out-{reduction}" / str(curve[-1].folder), dtype=torch.float64
    )
    for name, value in last.state_dict().items():
        assert torch.equal(value, found[name]), name
