"""SNIP in a `Trainer`: the curve, the levels' checkpoints, and which of them becomes the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback

from hf_prune import PruningCallback, PruningError
from hf_prune.report import TradeOffCurve
from tests.family_models import labels, main_head, sample
from tests.strategies.snip.runs import STEPS, Watch, config, level_folder, logits_of, rows_of
from tests.training.runs import BERT, assert_same, bert, is_clean, rows, trainer_of, weights

EVALUATING: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1000, "max_steps": STEPS}


def scripted(scores: Sequence[float], name: str = "accuracy") -> Callable[[Any], dict[str, float]]:
    """An evaluation that gives these scores one after the other."""
    left: Iterator[float] = iter(scores)
    return lambda prediction: {name: next(left)}


def train_bert(
    folder: Path, callback: PruningCallback, scores: Sequence[float], metric: str = "accuracy", **settings: Any
) -> tuple[PreTrainedModel, Trainer]:
    model = bert(0.1)
    evaluation = {"eval_dataset": rows(4), "compute_metrics": scripted(scores, metric)}
    trainer = trainer_of(model, folder, callback, trainer_settings=evaluation, **EVALUATING | settings)
    trainer.train()
    return model, trainer


class GivesUpTheLastStep(TrainerCallback):
    """What a gradient scaler does to a fused optimizer."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == STEPS - 1:
            kwargs["optimizer"].optimizer.found_inf = torch.tensor(1.0)


@pytest.mark.parametrize("evaluated", [False, True])
def test_the_last_level_is_recorded_though_its_step_was_given_up(evaluated: bool, tmp_path: Path) -> None:
    callback = PruningCallback(config(params=0.5))
    settings = EVALUATING if evaluated else {"max_steps": STEPS}
    given: dict[str, Any] = {"trainer_settings": {"eval_dataset": rows(4)}} if evaluated else {}
    trainer_of(bert(), tmp_path, callback, GivesUpTheLastStep(), **given, **settings).train()
    assert [level.step for level in callback.result.curve.levels] == [4, 8, 12]


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5"])
def test_every_level_is_evaluated_and_written(model_type: str, tmp_path: Path) -> None:
    """Post-LN, pre-norm with and without biases, an encoder with a decoder."""
    model = main_head(model_type).model()
    batch = sample(model)
    data = rows_of(batch | labels(model, batch))
    callback, watch = PruningCallback(config(params=0.5)), Watch(batch)
    data_sets = dict.fromkeys(("train_dataset", "eval_dataset"), data)
    trainer = trainer_of(model, tmp_path, callback, watch, trainer_settings=data_sets, **EVALUATING)
    trainer.train()

    curve = callback.result.curve
    assert [level.step for level in curve.levels] == [4, 8, 12]
    assert curve[0].params == curve[0].flops == 1.0
    assert 1 > curve[1].params > curve[2].params
    assert [level.details["iterations"] for level in curve.levels] == [0, 1, 2]
    logged = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert [level.metrics["eval_loss"] for level in curve.levels] == logged
    assert TradeOffCurve.load(tmp_path) == curve

    sizes = []
    for number, level in enumerate(curve.levels):
        assert level_folder(tmp_path, number) == tmp_path / level.folder
        loaded = type(model).from_pretrained(tmp_path / level.folder)
        masked = watch.logits[level.step]
        assert torch.allclose(logits_of(loaded, batch), masked, atol=1e-4 * float(masked.abs().max()))
        sizes.append(loaded.num_parameters())
    assert sizes[0] > sizes[1] > sizes[2]
    assert callback.result.model is model
    assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))
    assert_same(weights(loaded), weights(model))
    assert is_clean(model)
    if model.can_generate():
        assert loaded.generation_config.to_dict() == model.generation_config.to_dict()


class TestTheLevelThatAMetricChooses:
    def test_is_the_model(self, tmp_path: Path) -> None:
        callback = PruningCallback(config(max_metric_drop=0.01))
        model, _ = train_bert(tmp_path, callback, [0.9, 0.89, 0.7])
        result = callback.result
        assert [level.metrics["eval_accuracy"] for level in result.curve.levels] == [0.9, 0.89, 0.7]
        chosen = type(model).from_pretrained(level_folder(tmp_path, 1)).eval()
        assert_same(weights(model), weights(chosen))
        assert torch.equal(logits_of(model, BERT.batch()), logits_of(chosen, BERT.batch()))
        assert result.model is model
        kept = {row.key: row.kept for row in result.report.blocks}
        assert kept == dict(result.curve[1].kept) != dict(result.curve[2].kept)
        assert is_clean(model)

    def test_by_a_metric_of_which_less_is_better(self, tmp_path: Path) -> None:
        settings = {"metric_for_best_model": "error_rate", "greater_is_better": False}
        callback = PruningCallback(config(max_metric_drop=0.01))
        model, _ = train_bert(tmp_path, callback, [0.1, 0.5, 0.9], "error_rate", **settings)
        assert model.num_parameters() == bert().num_parameters()

    def test_after_resuming_where_training_had_ended(self, tmp_path: Path) -> None:
        saving = {"save_strategy": "steps", "save_steps": STEPS}
        settings = config(max_metric_drop=0.01, metric="accuracy")
        model, _ = train_bert(tmp_path, PruningCallback(settings), [0.9, 0.89, 0.7], **saving)
        again = PruningCallback(settings)
        other = bert(0.1)
        trainer_of(other, tmp_path, again, trainer_settings={"eval_dataset": rows(4)}, **EVALUATING).train(
            resume_from_checkpoint=True
        )
        assert_same(weights(model), weights(other))
        assert again.result.curve == TradeOffCurve.load(tmp_path)

    def test_needs_evaluations(self, tmp_path: Path) -> None:
        model = bert()
        before = weights(model)
        trainer = trainer_of(model, tmp_path, PruningCallback(config(max_metric_drop=0.01)), max_steps=STEPS)
        with pytest.raises(PruningError, match=r"max_metric_drop=0\.01 .*set eval_strategy"):
            trainer.train()
        assert_same(weights(model), before)
        assert is_clean(model)

    def test_that_is_missing_shows_early(self, tmp_path: Path) -> None:
        callback = PruningCallback(config(max_metric_drop=0.01, metric="f1"))
        with pytest.raises(PruningError, match=r"Level 0 of the curve has no metric 'f1'; it has .*accuracy"):
            train_bert(tmp_path, callback, [0.9, 0.8, 0.7])


def test_without_evaluations_levels_have_no_metrics(tmp_path: Path) -> None:
    model, callback = bert(), PruningCallback(config())
    trainer_of(model, tmp_path, callback, max_steps=STEPS).train()
    curve = callback.result.curve
    assert [dict(level.metrics) for level in curve.levels] == [{}, {}, {}]
    assert_same(weights(model), weights(type(model).from_pretrained(level_folder(tmp_path, 2))))


def test_metrics_of_several_evaluation_data_sets(tmp_path: Path) -> None:
    model, callback = bert(), PruningCallback(config())
    data = {"matched": rows(4), "mismatched": rows(6)}
    trainer_of(model, tmp_path, callback, trainer_settings={"eval_dataset": data}, **EVALUATING).train()
    for level in callback.result.curve.levels:
        assert {"eval_matched_loss", "eval_mismatched_loss"} <= set(level.metrics)
    assert TradeOffCurve.load(tmp_path) == callback.result.curve


def test_levels_at_the_ends_of_epochs_are_evaluated_once(tmp_path: Path) -> None:
    evaluated: list[int] = []

    class Counts(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            evaluated.append(state.global_step)

    callback = PruningCallback(config())
    epochs = {"num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 4, "eval_strategy": "epoch"}
    given = {"train_dataset": rows(16), "eval_dataset": rows(4)}
    trainer_of(bert(), tmp_path, callback, Counts(), trainer_settings=given, **epochs).train()
    assert evaluated == [4, 8, 12] == [level.step for level in callback.result.curve.levels]


def test_ordinary_evaluations_are_no_levels(tmp_path: Path) -> None:
    callback = PruningCallback(config())
    train_bert(tmp_path, callback, [index / 100 for index in range(STEPS)], eval_steps=1)
    levels = callback.result.curve.levels
    assert [(level.step, level.metrics["eval_accuracy"]) for level in levels] == [(4, 0.03), (8, 0.07), (12, 0.11)]


def test_the_best_model_is_the_last_level(tmp_path: Path) -> None:
    """The goal is reached after the first removal; of the steps from there on the ninth is best."""
    scores = [0.99] * 5 + [0.5, 0.5, 0.5, 0.8, 0.5, 0.5, 0.5]
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    callback = PruningCallback(config(params=0.9))
    model, trainer = train_bert(tmp_path, callback, scores, eval_steps=1, **best)
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-9"
    curve = callback.result.curve
    assert [level.step for level in curve.levels] == [4, 9]
    assert curve[1].metrics["eval_accuracy"] == 0.8
    assert curve == TradeOffCurve.load(tmp_path)
    assert_same(weights(model), weights(type(model).from_pretrained(level_folder(tmp_path, 1))))


def test_a_goal_that_was_not_reached_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = PruningCallback(config(params=0.1))
    trainer_of(bert(), tmp_path, callback, max_steps=STEPS).train()
    assert callback.result.curve[-1].params > 0.1
    assert "Training ended before the pruning schedule did: params" in caplog.text
