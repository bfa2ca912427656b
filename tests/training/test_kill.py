"""A process is killed in the middle of its training; another one ends the training as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import killed_run
from tests.training.runs import assert_same, weights

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("strategy", killed_run.CONFIGS)
def test_resumed_bit_for_bit(tmp_path: Path, strategy: str) -> None:
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    killed = subprocess.run(
        [sys.executable, killed_run.__file__, str(tmp_path), strategy],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert [file.name for file in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = killed_run.run(tmp_path, strategy, resume_from_checkpoint=True)
    whole = killed_run.run(tmp_path / "whole", strategy)
    assert_same(weights(whole), weights(resumed))
