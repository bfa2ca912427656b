"""What a module's SCRIPT has written: once on one process, and once for each number of several."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.written import TWO_AND_SLOWLY_FOUR, run_on


@pytest.fixture(scope="module")
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one process has written into."""
    return run_on(request.module.SCRIPT, tmp_path_factory.mktemp("alone"), 1)


@pytest.fixture(scope="module", params=TWO_AND_SLOWLY_FOUR)
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder that several processes have written into, and how many they are."""
    return run_on(request.module.SCRIPT, tmp_path_factory.mktemp("together"), request.param), request.param
