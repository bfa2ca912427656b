"""Pre-training with spectral normalisation, as a user would run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from hf_prune import MagnitudePruningConfig, PruningCallback
from hf_prune.anatomy import choose_matrices
from tests.examples.conftest import RunScript
from tests.training.runs import assert_same, bert, stored, trainer_of, weights

STEPS = ("--use_cpu", "--report_to", "none", "--per_device_train_batch_size", 8, "--max_steps", 6)
PRUNING = ("--strategy", "magnitude", "--sparsity", 0.5, "--frequency", 1)


def matrices(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of the layers' projections."""
    chosen = choose_matrices(model, lambda names, default: set(default), only_layers=True)
    return {matrix.name: matrix.parameter.detach() for matrix in chosen}


def largest(weight: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(weight)[0])


def test_pruned_pre_training_under_a_bound(
    run_script: RunScript, base_model: Path, texts: Path, tmp_path: Path
) -> None:
    files = ("--train_file", texts, "--validation_file", texts, "--max_seq_length", 16, "--output_dir", tmp_path)
    options = ("--do_train", "--do_eval", "--learning_rate", 1e-2, "--spectral_norm_bound", 0.5)
    run_script("masked_lm.py", "--model_name_or_path", base_model, *files, *STEPS, *options, *PRUNING)
    dense, model = (AutoModelForMaskedLM.from_pretrained(folder) for folder in (base_model, tmp_path))
    assert max(map(largest, matrices(dense).values())) > 1
    assert max(map(largest, matrices(model).values())) == pytest.approx(0.5, rel=0.15)  # the iteration is one step late
    assert all(float((weight == 0).float().mean()) == 0.5 for weight in matrices(model).values())
    assert json.loads((tmp_path / "all_results.json").read_text())["eval_loss"] > 0


def test_without_training_the_bound_is_refused(
    run_script: RunScript, base_model: Path, texts: Path, tmp_path: Path
) -> None:
    names = ("--model_name_or_path", base_model, "--spectral_norm_bound", 1.0)
    with pytest.raises(ValueError, match="--do_train"):
        run_script("masked_lm.py", *names, "--train_file", texts, "--output_dir", tmp_path)


@pytest.mark.parametrize("pruned", [True, False])
def test_an_interrupted_run_goes_on_bit_for_bit(pruned: bool, tmp_path: Path) -> None:
    from spectral_training import SpectralNormCallback
    from training_run import train

    def run(folder: Path) -> PreTrainedModel:
        model = bert(dropout=0.1)
        callbacks = [PruningCallback(MagnitudePruningConfig(sparsity=0.5, frequency=1))] if pruned else []
        settings = {"save_strategy": "steps", "save_steps": 3, "resume_from_checkpoint": "last"}
        train(trainer_of(model, folder, SpectralNormCallback(2.0), *callbacks, learning_rate=3e-2, **settings))
        return model

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    expected = run(whole)
    resumed.mkdir()
    (whole / "checkpoint-3").rename(resumed / "checkpoint-3")
    assert_same(weights(run(resumed)), weights(expected))
    if not pruned:
        assert_same(weights(expected), stored(whole / "checkpoint-6"))
    assert max(map(largest, matrices(expected).values())) == pytest.approx(2.0, rel=0.15)
    AutoModelForSequenceClassification.from_pretrained(resumed / "checkpoint-3")
