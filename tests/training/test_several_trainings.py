"""Trainings one after the other, and callbacks beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    TrainerCallback,
)

from hf_prune import MagnitudePruningConfig, MovementPruningConfig, PruningCallback, PruningError
from tests.training.runs import (
    MAGNITUDE,
    assert_exactly_pruned,
    assert_same,
    bert,
    is_clean,
    train,
    trainer_of,
    weights,
)


class Raises(TrainerCallback):
    """Ends a training as a lost machine would, as far as one process can tell."""

    def __init__(self, step: int, error: type[Exception] = KeyError) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            raise self.error("CUDA out of memory.")


class TestSeveralTrainings:
    def test_a_second_training_of_the_same_trainer_holds_and_goes_on(self, tmp_path: Path) -> None:
        model = bert()
        trainer = trainer_of(model, tmp_path, callback := PruningCallback(MAGNITUDE))
        trainer.train()
        first, before = callback.result, weights(model)
        trainer.train()
        assert callback.result is not first
        assert_exactly_pruned(model)
        assert not torch.equal(model.classifier.weight, before["classifier.weight"])

    def test_a_second_training_of_a_cut_model_wants_a_new_optimizer(self, tmp_path: Path) -> None:
        model = bert()
        config = MagnitudePruningConfig(flops=0.5, round_to=1, frequency=1)
        trainer = trainer_of(model, tmp_path, PruningCallback(config))
        trainer.train()
        with pytest.raises(PruningError, match=r"trainer\.optimizer = None"):
            trainer.train()
        assert is_clean(model)
        trainer.optimizer = None
        trainer.train()
        assert is_clean(model)

    @pytest.mark.parametrize("config", [MAGNITUDE, MovementPruningConfig(sparsity=0.6)], ids=["magnitude", "movement"])
    def test_after_a_failure_it_is_started_again(self, tmp_path: Path, config: Any) -> None:
        model = bert()
        trainer = trainer_of(model, tmp_path, callback := PruningCallback(config), Raises(4))
        with pytest.raises(KeyError):
            trainer.train()
        assert callback.result is None
        trainer.train()
        for name, mask in callback.result.plan.masks.items():
            assert mask.numel() - int(mask.count_nonzero()) == round(0.6 * mask.numel()), name
        assert is_clean(model)

    @pytest.mark.parametrize("config", [MAGNITUDE, MovementPruningConfig(sparsity=0.6)], ids=["magnitude", "movement"])
    def test_after_a_failure_it_is_resumed_by_the_same_trainer(self, tmp_path: Path, config: Any) -> None:
        """What the failed run has pruned since must not get into the checkpoint's weights."""
        whole, resumed = bert(0.1), bert(0.1)
        train(whole, tmp_path / "whole", config)
        saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
        trainer = trainer_of(resumed, tmp_path / "resumed", PruningCallback(config), Raises(3), **saving)
        with pytest.raises(KeyError):
            trainer.train()
        trainer.train(resume_from_checkpoint=True)
        assert_same(weights(whole), weights(resumed))

    def test_smaller_batches_are_tried(self, tmp_path: Path) -> None:
        model = bert()
        trainer = trainer_of(
            model, tmp_path, PruningCallback(MAGNITUDE), Raises(2, RuntimeError), auto_find_batch_size=True
        )
        trainer.train()
        assert trainer._train_batch_size < 4
        assert_exactly_pruned(model)


class TestSeveralCallbacks:
    def test_prune_different_modules(self, tmp_path: Path) -> None:
        model = bert()
        first = PruningCallback(MagnitudePruningConfig(sparsity=0.5, target_modules=["query", "key"], frequency=1))
        second = PruningCallback(MovementPruningConfig(sparsity=0.75, target_modules=["intermediate.dense"]))
        trainer_of(model, tmp_path, first, second).train()
        assert len(first.result.plan.masks) == 6
        assert len(second.result.plan.masks) == 3
        for callback, sparsity in ((first, 0.5), (second, 0.75)):
            for name, mask in callback.result.plan.masks.items():
                assert torch.equal(model.get_parameter(name) != 0, mask)
                assert int(mask.count_nonzero()) == mask.numel() - round(sparsity * mask.numel())
        assert is_clean(model)

    def test_do_not_share_a_matrix(self, tmp_path: Path) -> None:
        second = MovementPruningConfig(sparsity=0.5, target_modules=["query"])
        trainer = trainer_of(bert(), tmp_path, PruningCallback(MAGNITUDE), PruningCallback(second))
        with pytest.raises(PruningError, match=r"query\.weight is masked already: two strategies"):
            trainer.train()
