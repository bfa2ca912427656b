"""A run that fails while the pruned model is trained, or after that, gives the dense model back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_prune import FisherPruningConfig, prune_model, pruning_run
from tests.failing import Failing
from tests.small_models import Batch, case
from tests.witness import Witness

BERT = case("bert", "classification")


@pytest.fixture
def batches() -> list[Batch]:
    return [BERT.batch(seed) for seed in range(4)]


def config() -> FisherPruningConfig:
    return FisherPruningConfig(flops=0.5, latency_batch_size=2)


@pytest.mark.parametrize("when", ["making the trainer", "in the middle of training", "after training"])
def test_interrupted_retraining_leaves_the_model(
    when: str, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BERT.model()
    rows = Dataset.from_dict({key: value.tolist() for key, value in batches[0].items()})
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, learning_rate=1e-2, report_to=[], disable_tqdm=True, use_cpu=True
    )

    class Interrupted(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            if when == "in the middle of training" and self.state.global_step == 2:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    def retrain(pruned: PreTrainedModel) -> Trainer:
        if when == "making the trainer":
            raise KeyboardInterrupt
        return Interrupted(pruned, arguments, train_dataset=rows)

    if when == "after training":
        evaluate = Failing(pruning_run.evaluate_model, 1, KeyboardInterrupt)
        monkeypatch.setattr(pruning_run, "evaluate_model", evaluate)
    witness = Witness(model)
    with pytest.raises(KeyboardInterrupt):
        prune_model(model, config(), batches, eval_dataset=rows, retrain=retrain)
    witness.check()


def test_failure_after_training_puts_back_statistics(batches: list[Batch]) -> None:
    """Training writes to buffers, too, where a model normalises by the statistics of batches."""
    model = BERT.model()
    model.register_buffer("mean", torch.zeros(3))
    witness = Witness(model)

    class Training:
        def train(self) -> None:
            model.get_buffer("mean").add_(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        prune_model(model, config(), batches, retrain=lambda pruned: Training())  # type: ignore[arg-type,return-value]
    witness.check()


def test_no_memory_for_a_copy_before_training(batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    model = BERT.model()
    witness = Witness(model)
    monkeypatch.setattr(model, "buffers", Failing(model.buffers, 0, MemoryError))
    with pytest.raises(MemoryError):
        prune_model(model, config(), batches, retrain=lambda pruned: pytest.fail("it was trained"))
    monkeypatch.undo()
    witness.check()
