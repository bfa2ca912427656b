"""Processes that share the calibration data go on together after one of them was lost."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.distributed.launching import launch
from tests.distributed.written import agreed, run_on

SCRIPT = "resume_shards.py"


def test_a_lost_process(tmp_path: Path) -> None:
    assert launch(SCRIPT, 2, tmp_path, "lost").returncode != 0
    run = tmp_path / "resumed-run"
    left = [{file.name for file in (run / f"process-{rank}").glob("*repair*")} for rank in range(2)]
    assert left[0] & left[1]
    run_on(SCRIPT, tmp_path, 2)
    resumed, whole = (agreed(tmp_path, name, 2) for name in ("resumed", "whole"))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert not list(tmp_path.glob("*-run"))
