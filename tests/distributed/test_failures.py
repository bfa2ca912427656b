"""Where one process fails, all of them end, and the error is to be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.failing_shards import MESSAGE
from tests.distributed.launching import launch


@pytest.mark.parametrize("when", ["calibration", "training"])
def test_all_end_with_the_one_that_fails(tmp_path: Path, when: str) -> None:
    finished = launch("failing_shards.py", 2, tmp_path, when)  # which does not wait for ever
    assert finished.returncode != 0
    assert f"OSError: {MESSAGE}" in finished.stderr
    if when == "calibration":  # where the others are told, even if nothing ends them from outside
        assert f"PruningError: Process 1 failed: OSError: {MESSAGE}" in finished.stderr
