"""Processes that train and prune together give what one process gives with the same total batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.train_shards import CONFIGS, NOISY, STEPS
from tests.distributed.written import agreed, assert_close, metadata

# It asserts that masks are the same on all processes after every step.
SCRIPT = "train_shards.py"


@pytest.mark.parametrize("name", CONFIGS)
def test_processes_agree_with_each_other_and_with_one_process(
    alone: Path, together: tuple[Path, int], name: str
) -> None:
    folder, processes = together
    assert_close(agreed(folder, name, processes), agreed(alone, name, 1))
    # Agreement after every step says something only if there is something to agree on.
    assert 3 <= int(metadata(folder / f"{name}-{processes}-0.safetensors")["masks"]) <= STEPS


@pytest.mark.parametrize("name", NOISY)
def test_processes_agree_with_each_other(together: tuple[Path, int], name: str) -> None:
    found, dense = agreed(*_of(together, name)), agreed(*_of(together, "magnitude"))
    assert sum(value.numel() for value in found.values()) < sum(value.numel() for value in dense.values())


def test_an_interrupted_training_goes_on(alone: Path, together: tuple[Path, int]) -> None:
    for run in ((alone, 1), together):
        whole, resumed = agreed(*_of(run, "movement")), agreed(*_of(run, "resumed"))
        for key, value in whole.items():
            assert torch.equal(value, resumed[key]), key


def test_the_best_model_is_the_same_on_all(together: tuple[Path, int]) -> None:
    best = agreed(*_of(together, "best"))
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert int((best[query] == 0).sum()) == round(0.6 * best[query].numel())


def _of(run: tuple[Path, int], name: str) -> tuple[Path, str, int]:
    folder, processes = run
    return folder, name, processes
