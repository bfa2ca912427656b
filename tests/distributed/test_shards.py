"""Processes that share the calibration data give what one process gives on all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launching import launch
from tests.distributed.prune_shards import CONFIGS
from tests.distributed.written import agreed, assert_close, run_on


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for processes in (1, 2, 4):
        run_on("prune_shards.py", folder, processes)
    return folder


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_processes_agree_with_each_other_and_with_one_process(written: Path, name: str, processes: int) -> None:
    found, expected = agreed(written, name, processes), agreed(written, name, 1)
    assert_close(found, expected)
    if "movement" in name:
        zeros = sum(int((value == 0).sum()) for value in found.values())
        assert 0.1 < zeros / sum(value.numel() for value in found.values()) < 0.9


def test_a_refusal_on_the_measuring_process_ends_all(tmp_path: Path) -> None:
    finished = launch("prune_shards.py", 2, tmp_path, "unreachable")
    assert finished.returncode != 0
    assert "InfeasibleBudgetError" in finished.stderr
    assert "Process 0 failed: latency_ms" in finished.stderr
    assert not list(tmp_path.iterdir())
