"""Two processes that share the episodes of a meta-training out give what one process gives on all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launching import launch
from tests.distributed.meta_shards import new_pruner

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meta")
    for processes in (1, 2):
        finished = launch("meta_shards.py", processes, folder)
        assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


def last_pruner(written: Path, processes: int) -> dict[str, torch.Tensor]:
    """The pruner at the end of the whole training, which need not be the best one."""
    tensors = load_file(written / f"whole-{processes}" / "meta_training.safetensors")
    return {name.removeprefix("pruner."): value for name, value in tensors.items() if name.startswith("pruner.")}


def losses(written: Path, run: str) -> list[float]:
    history = json.loads((written / run / "meta_training.json").read_text())
    return [entry[name] for entry in history for name in ("validation_loss", "training_loss") if name in entry]


def test_processes_have_the_same_pruner_and_one_process_nearly_that(written: Path) -> None:
    first, second = (load_file(written / f"whole-2-{rank}.safetensors") for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    one, two = (last_pruner(written, processes) for processes in (1, 2))
    for name, value in two.items():
        if not name.endswith(BUFFERS):  # a process's running statistics are of its own episodes, averaged in the end
            assert torch.allclose(value, one[name], atol=1e-5), name
            assert not torch.allclose(value, new_pruner().state_dict()[name], atol=1e-3), name


def test_the_losses_are_the_same(written: Path) -> None:
    one, two = (losses(written, f"whole-{processes}") for processes in (1, 2))
    assert len(one) == len(two) == 5
    assert two[0] == pytest.approx(one[0], rel=1e-5)  # before training
    assert two[2::2] == pytest.approx(one[2::2], rel=1e-4)  # of training
    assert max(two) - min(two) > 1e-3


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_training_goes_on(written: Path, processes: int) -> None:
    for rank in range(processes):
        whole, resumed = (
            load_file(written / f"{name}-{processes}-{rank}.safetensors") for name in ("whole", "resumed")
        )
        for name, value in whole.items():
            assert torch.equal(value, resumed[name]), name
    assert losses(written, f"whole-{processes}") == losses(written, f"resumed-{processes}")
