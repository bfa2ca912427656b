"""Two processes that train and prune together give what one process gives with the same total batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.distributed.launching import launch
from tests.distributed.train_shards import CONFIGS, NOISY, STEPS


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both have written; that masks are the same on both processes after every step is asserted there."""
    folder = tmp_path_factory.mktemp("training")
    for processes in (1, 2):
        finished = launch("train_shards.py", processes, folder)
        assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_processes_agree_with_each_other_and_with_one_process(written: Path, name: str) -> None:
    one, first, second = (load_file(written / f"{name}-{run}.safetensors") for run in ("1-0", "2-0", "2-1"))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        assert torch.equal(value == 0, one[key] == 0), key
        assert torch.allclose(value, one[key], atol=1e-6), key


@pytest.mark.parametrize("name", NOISY)
def test_processes_agree_with_each_other(written: Path, name: str) -> None:
    first, second = (load_file(written / f"{name}-2-{rank}.safetensors") for rank in (0, 1))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    dense = load_file(written / "magnitude-2-0.safetensors")
    assert sum(value.numel() for value in first.values()) < sum(value.numel() for value in dense.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_masks_change_while_the_model_is_trained(written: Path, name: str) -> None:
    """Agreement after every step says something only if there is something to agree on."""
    with safe_open(written / f"{name}-2-0.safetensors", "pt") as file:
        assert 3 <= int(file.metadata()["masks"]) <= STEPS


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_training_goes_on(written: Path, processes: int) -> None:
    for rank in range(processes):
        whole = load_file(written / f"movement-{processes}-{rank}.safetensors")
        resumed = load_file(written / f"resumed-{processes}-{rank}.safetensors")
        for key, value in whole.items():
            assert torch.equal(value, resumed[key]), key


def test_the_best_model_is_the_same_on_both(written: Path) -> None:
    first, second = (load_file(written / f"best-2-{rank}.safetensors") for rank in (0, 1))
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert int((first[query] == 0).sum()) == round(0.6 * first[query].numel())
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
