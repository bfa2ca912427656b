"""Processes that learn a static mask together give what one process gives with the same total batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.small_bert import small_model
from tests.distributed.static_shards import NAMES
from tests.distributed.written import agreed, assert_close

SCRIPT = "static_shards.py"


@pytest.mark.parametrize("name", NAMES)
def test_processes_agree_with_each_other_and_with_one_process(
    alone: Path, together: tuple[Path, int], name: str
) -> None:
    folder, processes = together
    found = agreed(folder, name, processes)
    assert_close(found, agreed(alone, name, 1))
    masks = [value for value in found.values() if value.dtype == torch.bool]
    assert bool(masks) == (name == "adapter")
    assert all(not mask.all() for mask in masks)


def test_kept_weights_are_what_they_were(together: tuple[Path, int]) -> None:
    folder, processes = together
    before = small_model().state_dict()
    for key, value in agreed(folder, "in_place", processes).items():
        if "classifier" not in key:
            assert torch.equal(value[value != 0], before[key][value != 0]), key


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_training_goes_on(alone: Path, together: tuple[Path, int], name: str) -> None:
    for folder, processes in ((alone, 1), together):
        whole, resumed = agreed(folder, name, processes), agreed(folder, f"{name}-resumed", processes)
        for key, value in whole.items():
            assert torch.equal(value, resumed[key]), key
