"""Two processes that learn a static mask together give what one process gives with the same total batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launching import launch
from tests.distributed.small_bert import small_model
from tests.distributed.static_shards import NAMES, train_all


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static")
    train_all(folder / "1")
    finished = launch("static_shards.py", 2, folder / "2")
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_processes_agree_with_each_other_and_with_one_process(written: Path, name: str) -> None:
    one, first, second = (
        load_file(written / f"{run[0]}" / f"{name}-{run}.safetensors") for run in ("1-0", "2-0", "2-1")
    )
    masks = 0
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        if value.dtype == torch.bool:
            masks += int(value.numel() - value.sum())
            assert float((value == one[key]).float().mean()) > 0.99, key
        else:
            assert torch.allclose(value.double(), one[key].double(), atol=1e-4), key
    assert (masks > 0) == (name == "adapter")


def test_kept_weights_are_what_they_were(written: Path) -> None:
    before = small_model().state_dict()
    for key, value in load_file(written / "2" / "in_place-2-1.safetensors").items():
        if "classifier" not in key:
            assert torch.equal(value[value != 0], before[key][value != 0]), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_training_goes_on(written: Path, name: str, processes: int) -> None:
    for rank in range(processes):
        folder = written / str(processes)
        whole = load_file(folder / f"{name}-{processes}-{rank}.safetensors")
        resumed = load_file(folder / f"{name}-resumed-{processes}-{rank}.safetensors")
        for key, value in whole.items():
            assert torch.equal(value, resumed[key]), key
