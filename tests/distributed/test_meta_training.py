"""Processes that share the episodes of a meta-training out give what one process gives on all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.meta_shards import new_pruner
from tests.distributed.written import Tensors, agreed

SCRIPT = "meta_shards.py"

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def last_pruner(folder: Path, processes: int) -> Tensors:
    """The pruner at the end of the whole training, which need not be the best one."""
    tensors = load_file(folder / f"whole-{processes}" / "meta_training.safetensors")
    return {name.removeprefix("pruner."): value for name, value in tensors.items() if name.startswith("pruner.")}


def losses(folder: Path, run: str) -> list[float]:
    history = json.loads((folder / run / "meta_training.json").read_text())
    return [entry[name] for entry in history for name in ("validation_loss", "training_loss") if name in entry]


def test_processes_have_the_same_pruner_and_one_process_nearly_that(alone: Path, together: tuple[Path, int]) -> None:
    folder, processes = together
    agreed(folder, "whole", processes)
    found, expected = last_pruner(folder, processes), last_pruner(alone, 1)
    for name, value in found.items():
        if not name.endswith(BUFFERS):  # a process's running statistics are of its own episodes, averaged in the end
            assert torch.allclose(value, expected[name], atol=1e-5), name
            assert not torch.allclose(value, new_pruner().state_dict()[name], atol=1e-3), name


def test_the_losses_are_the_same(alone: Path, together: tuple[Path, int]) -> None:
    folder, processes = together
    found, expected = losses(folder, f"whole-{processes}"), losses(alone, "whole-1")
    assert len(found) == len(expected) == 5
    assert found[0] == pytest.approx(expected[0], rel=1e-5)  # before training
    assert found[2::2] == pytest.approx(expected[2::2], rel=1e-4)  # of training
    assert max(found) - min(found) > 1e-3


def test_an_interrupted_training_goes_on(alone: Path, together: tuple[Path, int]) -> None:
    for folder, processes in ((alone, 1), together):
        whole, resumed = agreed(folder, "whole", processes), agreed(folder, "resumed", processes)
        for name, value in whole.items():
            assert torch.equal(value, resumed[name]), name
        assert losses(folder, f"whole-{processes}") == losses(folder, f"resumed-{processes}")


def test_processes_that_do_not_see_the_same_run_do_not_go_on(alone: Path, together: tuple[Path, int]) -> None:
    folder, processes = together
    assert (alone / "apart-1-0" / "message.txt").read_text() == "went on"
    for rank in range(processes):
        message = (folder / f"apart-{processes}-{rank}" / "message.txt").read_text()
        own = max(rank, 1)  # the first process is told of the others
        assert f"The first process goes on after 2 updates, process {own} after 0" in message, message
