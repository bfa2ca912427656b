"""Which checkpoint `load_best_model_at_end` gives back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from hf_prune import MagnitudePruningConfig, PruningCallback
from tests.training.runs import (
    MAGNITUDE,
    assert_exactly_pruned,
    assert_same,
    bert,
    kept,
    rows,
    stored,
    trainer_of,
    weights,
)


class TestTheBestModel:
    def test_is_one_that_is_as_sparse_as_was_asked_for(self, tmp_path: Path) -> None:
        """Denser checkpoints evaluate better here, by construction, and are not chosen."""
        model = bert()
        callback = PruningCallback(MAGNITUDE)
        trainer = train_to_the_best(model, tmp_path, callback, greater_is_better=True)
        assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-3"
        assert_exactly_pruned(model)
        assert_same(weights(model), stored(tmp_path / "checkpoint-3"))
        assert_same(dict(callback.result.plan.masks), kept(model))

    def test_of_heads_and_filters_is_cut(self, tmp_path: Path) -> None:
        model = bert()
        callback = PruningCallback(MagnitudePruningConfig(flops=0.5, round_to=1, frequency=1))
        train_to_the_best(model, tmp_path, callback, save_only_model=True, save_total_limit=1)
        assert callback.result.report.pruned.flops <= 0.5 * callback.result.report.dense.flops
        best = stored(next(tmp_path.glob("checkpoint-3")))
        bias = "bert.encoder.layer.0.output.dense.bias"
        assert torch.equal(model.get_parameter(bias), best[bias])


def train_to_the_best(model: PreTrainedModel, folder: Path, callback: PruningCallback, **settings: Any) -> Trainer:
    """Evaluates after every step, each time worse than before, and loads the best checkpoint."""
    scores = iter(range(100, 0, -1))
    trainer = trainer_of(
        model,
        folder,
        callback,
        trainer_settings={
            "eval_dataset": rows(4),
            "compute_metrics": lambda prediction: {"score": float(next(scores))},
        },
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        **settings,
    )
    trainer.train()
    return trainer
