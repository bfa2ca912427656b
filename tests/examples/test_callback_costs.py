"""The benchmarks of what trainings and pruned models take, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import callback_memory
import callback_overhead
import pytest
import storage
from callback_variants import ADAPTER, PERIOD, STATIC, VARIANTS
from peak_memory import measured_apart


@pytest.fixture
def options(files: Path) -> list[str]:
    return ["--models", str(files / "models"), "--data", str(files / "data")]


@pytest.mark.parametrize("name", [STATIC, ADAPTER])
def test_every_step_is_timed(options: list[str], name: str) -> None:
    arguments = callback_overhead.parse_arguments([*options, "--periods", "1", "--batch-size", "2", "--length", "4"])
    seconds = callback_overhead.timed_steps(VARIANTS[name], arguments)
    assert len(seconds) == 2 * PERIOD
    assert min(seconds) > 0


def test_the_peak_of_a_training_holds_its_activations(options: list[str]) -> None:
    shape = ["--batch-size", "256", "--length", "64"]
    # The activations of one layer's feed-forward block: 48 filters, in float32. In this process, memory that earlier
    # tests have left free would hide them.
    assert measured_apart(callback_memory.__file__, [*options, *shape], STATIC) > 256 * 64 * 48 * 4


def test_sizes_are_those_of_files_that_load(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "storage.json"
    storage.main([*options, "--rounds", "1", "--output", str(output)])
    found = json.loads(output.read_text(encoding="utf8"))
    sizes = found["checkpoints"]
    assert 1.8 < sizes["float32"]["dense"] / sizes["half precision"]["dense"] < 2.1
    assert all(pair["bitmask"] < pair["dense"] for pair in sizes.values())
    bits = 2 * (4 * 32 * 32 + 2 * 32 * 48) / 8
    heads = {name: values["bytes"] - bits for name, values in found["adapters"].items()}
    assert 0 < heads["label words"] < heads["task head"] < 8000
    assert "| label words |" in capsys.readouterr().out
