"""Single weights that FSDP2 shares out over processes are pruned as one process prunes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from hf_prune.shards import WHOLE
from tests.distributed.sharded_callback import NAMES
from tests.distributed.sharded_training import ACCUMULATED, CONFIGS
from tests.distributed.written import TWO_AND_SLOWLY_FOUR, assert_close, run_on

# It asserts that masks are the same on all processes after every step.
SCRIPT = "sharded_training.py"


@pytest.mark.parametrize("name", CONFIGS)
def test_processes_agree_with_one_process(alone: Path, together: tuple[Path, int], name: str) -> None:
    folder, processes = together
    expected = load_file(alone / f"{name}-1.safetensors")
    assert_close(load_file(folder / f"{name}-{processes}.safetensors"), expected)
    assert sum(int((value == 0).sum()) for value in expected.values()) > 90


@pytest.mark.parametrize("name", ACCUMULATED)
def test_gradients_add_up_over_parts_of_a_mini_batch(alone: Path, together: tuple[Path, int], name: str) -> None:
    folder, processes = together
    found = load_file(folder / f"{name}-accumulated-{processes}.safetensors")
    assert_close(found, load_file(alone / f"{name}-1.safetensors"))


def test_another_number_of_processes_goes_on(alone: Path, together: tuple[Path, int]) -> None:
    """One process with what several have begun, and several with what one has."""
    folder, processes = together
    run_on(SCRIPT, folder, 1, "resumed")
    run_on(SCRIPT, alone, processes, "resumed")
    for name in CONFIGS:
        whole = load_file(alone / f"{name}-1.safetensors")
        assert_close(load_file(folder / f"{name}-resumed-1.safetensors"), whole)
        assert_close(load_file(alone / f"{name}-resumed-{processes}.safetensors"), whole)


@pytest.mark.parametrize("processes", TWO_AND_SLOWLY_FOUR)
def test_selections_by_sharded_scores_are_those_of_all_scores(tmp_path: Path, processes: int) -> None:
    run_on("sharded_selection.py", tmp_path, processes)


def test_what_comes_first_is_allotted_first() -> None:
    counts = torch.tensor([2, 0, 3])
    assert [WHOLE.allotted(counts, number) for number in (0, 1, 2, 4, 9)] == [
        [0, 0, 0],
        [1, 0, 0],
        [2, 0, 0],
        [2, 0, 2],
        [2, 0, 3],
    ]


def test_a_callback_prunes_and_resumes(alone: Path, tmp_path: Path) -> None:
    run_on("sharded_callback.py", tmp_path, 2)
    for name in NAMES:
        expected = load_file(alone / f"{name}-1.safetensors")
        for run in ("whole", "resumed"):
            model = BertForSequenceClassification.from_pretrained(tmp_path / f"{name}-{run}", dtype=torch.float64)
            assert model.config.pruning["weights"]["removed"] > 5000
            assert_close(model.state_dict(), expected)
