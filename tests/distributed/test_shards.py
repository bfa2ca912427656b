"""Two processes that share the calibration data give what one process gives on all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launching import launch
from tests.distributed.prune_shards import SETTINGS


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for processes in (1, 2):
        finished = launch("prune_shards.py", processes, folder)
        assert finished.returncode == 0, finished.stderr[-2000:]
    return folder


@pytest.mark.parametrize("settings", SETTINGS)
def test_processes_agree_with_each_other_and_with_one_process(written: Path, settings: str) -> None:
    one, first, second = (load_file(written / f"{settings}-{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert value.shape == one[name].shape, name
        assert torch.allclose(value, one[name], atol=1e-6), name


def test_a_refusal_on_the_measuring_process_ends_all(tmp_path: Path) -> None:
    finished = launch("prune_shards.py", 2, tmp_path, "unreachable")
    assert finished.returncode != 0
    assert "InfeasibleBudgetError" in finished.stderr
    assert "Process 0 failed: latency_ms" in finished.stderr
    assert not list(tmp_path.iterdir())
