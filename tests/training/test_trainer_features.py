"""Whatever else a `Trainer` can do, it does with a `PruningCallback`, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import (
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)

from hf_prune import MagnitudePruningConfig, MovementPruningConfig, PruningCallback, PruningError
from hf_prune.anatomy.matrices import choose_matrices
from tests.small_models import scale_weights
from tests.training.runs import (
    STEPS,
    assert_same,
    bert,
    history,
    is_clean,
    kept,
    rows,
    stored,
    train,
    trainer_of,
    weights,
)

MAGNITUDE = MagnitudePruningConfig(sparsity=0.6, frequency=1)


def assert_exactly_pruned(model: PreTrainedModel, sparsity: float = 0.6) -> None:
    """Every matrix has lost the fraction asked for, to the weight, and nothing else is left of pruning."""
    for name, mask in kept(model).items():
        assert mask.numel() - int(mask.count_nonzero()) == round(sparsity * mask.numel()), name
    assert is_clean(model)


class Raises(TrainerCallback):
    """Ends a training as a lost machine would, as far as one process can tell."""

    def __init__(self, step: int, error: type[Exception] = KeyError) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            raise self.error("CUDA out of memory.")


class Records(TrainerCallback):
    """Gets logs as TensorBoard and W&B do: before callbacks that a user adds."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.logs.append(dict(logs))


class TestTheTrainerItself:
    def test_optimizer_handed_in_by_the_user(self, tmp_path: Path) -> None:
        model = bert()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)
        callback = PruningCallback(MAGNITUDE)
        trainer_of(model, tmp_path, callback, trainer_settings={"optimizers": (optimizer, None)}).train()
        assert_exactly_pruned(model)
        assert not optimizer._optimizer_step_post_hooks

    def test_compute_loss_func(self, tmp_path: Path) -> None:
        def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

        model = bert()
        trainer_of(model, tmp_path, PruningCallback(MAGNITUDE), trainer_settings={"compute_loss_func": loss}).train()
        assert_exactly_pruned(model)

    def test_subclass(self, tmp_path: Path) -> None:
        class Other(Trainer):
            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
                outputs = model(**inputs)
                return (2 * outputs.loss, outputs) if return_outputs else 2 * outputs.loss

            def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
                return super().training_step(model, dict(inputs), *args, **kwargs)

            def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
                super().log({"mine": 1.0, **logs}, *args, **kwargs)

        model = bert()
        trainer = trainer_of(model, tmp_path, PruningCallback(MAGNITUDE), trainer_class=Other)
        trainer.train()
        assert_exactly_pruned(model)
        assert history(trainer)[-1]["sparsity"] == pytest.approx(0.6, abs=1e-3)
        assert history(trainer)[-1]["mine"] == 1

    def test_sequence_to_sequence(self, tmp_path: Path) -> None:
        config = T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, dropout_rate=0.0)
        config.decoder_start_token_id = 0
        model = T5ForConditionalGeneration(config)
        scale_weights(model)
        ids = torch.randint(5, 61, (24, 7), generator=torch.Generator().manual_seed(0)).tolist()
        data = Dataset.from_dict({"input_ids": ids, "labels": ids})
        trainer = trainer_of(
            model,
            tmp_path,
            PruningCallback(MAGNITUDE),
            trainer_class=Seq2SeqTrainer,
            trainer_settings={"train_dataset": data, "eval_dataset": data},
            arguments_class=Seq2SeqTrainingArguments,
            predict_with_generate=True,
            generation_max_length=8,
            eval_strategy="steps",
            eval_steps=3,
        )
        trainer.train()
        assert_exactly_pruned(model)
        assert model.lm_head.weight is model.shared.weight
        assert [name for name in kept(model) if "shared" in name or "embed" in name or "lm_head" in name] == [
            "shared.weight"
        ]

    def test_model_init(self, tmp_path: Path) -> None:
        callback = PruningCallback(MAGNITUDE)
        trainer = trainer_of(None, tmp_path, callback, trainer_settings={"model_init": lambda: bert()})
        trainer.train()
        assert_exactly_pruned(trainer.model)
        assert callback.result.model is trainer.model

    def test_callback_that_is_added_later(self, tmp_path: Path) -> None:
        early, late = bert(), bert()
        train(early, tmp_path, MAGNITUDE)
        trainer = trainer_of(late, tmp_path)
        trainer.add_callback(PruningCallback(MAGNITUDE))
        trainer.train()
        assert_same(weights(early), weights(late))

    def test_evaluation_does_not_change_training(self, tmp_path: Path) -> None:
        plain, evaluated = bert(), bert()
        train(plain, tmp_path, MAGNITUDE)
        data = {"eval_dataset": rows(8)}
        train(evaluated, tmp_path, MAGNITUDE, trainer_settings=data, eval_strategy="steps", eval_steps=2)
        assert_same(weights(plain), weights(evaluated))

    def test_settings_as_a_dictionary(self, tmp_path: Path) -> None:
        one, other = bert(), bert()
        train(one, tmp_path, MAGNITUDE)
        callback = PruningCallback({"strategy": "magnitude", "sparsity": 0.6, "frequency": 1})
        trainer_of(other, tmp_path, callback).train()
        assert_same(weights(one), weights(other))


class TestLogs:
    def test_are_in_the_history_and_with_reporters(self, tmp_path: Path) -> None:
        records = Records()
        trainer = trainer_of(bert(), tmp_path, PruningCallback(MAGNITUDE))
        trainer.callback_handler.callbacks.insert(0, records)
        trainer.train()
        reported = [row["sparsity"] for row in records.logs if "loss" in row]
        assert reported == [row["sparsity"] for row in history(trainer)]
        assert reported == sorted(reported)
        assert reported[0] == pytest.approx(0.6 * (1 - (2 / 3) ** 3), abs=1e-3)
        assert reported[-1] == pytest.approx(0.6, abs=1e-3)

    def test_of_heads_and_filters(self, tmp_path: Path) -> None:
        trainer = trainer_of(bert(), tmp_path, PruningCallback(MagnitudePruningConfig(flops=0.5, round_to=1)))
        trainer.train()
        last = history(trainer)[-1]
        assert 0 < last["flops"] <= 0.5
        assert 0 <= last["heads"] <= 1
        assert 0 <= last["filters"] <= 1

    def test_other_trainers_and_other_logs_are_left_alone(self, tmp_path: Path) -> None:
        trainer = trainer_of(bert(), tmp_path, PruningCallback(MAGNITUDE))
        trainer.train()
        assert "sparsity" not in trainer.state.log_history[-1]
        plain = trainer_of(bert(), tmp_path)
        plain.train()
        assert not any("sparsity" in row for row in plain.state.log_history)

    def test_of_two_callbacks(self, tmp_path: Path) -> None:
        first = MagnitudePruningConfig(sparsity=0.5, end=0.0, target_modules=["query"])
        second = MovementPruningConfig(sparsity=0.75, end=0.0, target_modules=["intermediate.dense"])
        trainer = trainer_of(bert(), tmp_path, PruningCallback(first), PruningCallback(second))
        trainer.train()
        last = history(trainer)[-1]
        assert (last["sparsity"], last["sparsity_2"]) == (0.5, 0.75)


class TestTheBestModel:
    def test_is_one_that_is_as_sparse_as_was_asked_for(self, tmp_path: Path) -> None:
        """Denser checkpoints evaluate better here, by construction, and are not chosen."""
        model = bert()
        trainer = trainer_of(
            model,
            tmp_path,
            callback := PruningCallback(MAGNITUDE),
            trainer_settings={"eval_dataset": rows(4), "compute_metrics": falling_metric()},
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="score",
            greater_is_better=True,
        )
        trainer.train()
        assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-3"
        assert_exactly_pruned(model)
        assert_same(weights(model), stored(tmp_path / "checkpoint-3"))
        assert_same(dict(callback.result.plan.masks), kept(model))

    def test_of_heads_and_filters_is_cut(self, tmp_path: Path) -> None:
        model = bert()
        callback = PruningCallback(MagnitudePruningConfig(flops=0.5, round_to=1, frequency=1))
        trainer_of(
            model,
            tmp_path,
            callback,
            trainer_settings={"eval_dataset": rows(4), "compute_metrics": falling_metric()},
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="score",
            save_only_model=True,
            save_total_limit=1,
        ).train()
        assert callback.result.report.pruned.flops <= 0.5 * callback.result.report.dense.flops
        best = stored(next(tmp_path.glob("checkpoint-3")))
        bias = "bert.encoder.layer.0.output.dense.bias"
        assert torch.equal(model.get_parameter(bias), best[bias])


def falling_metric() -> Any:
    values = iter(range(100, 0, -1))
    return lambda prediction: {"score": float(next(values))}


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


class TestAdapters:
    @pytest.fixture
    def adapted(self) -> Any:
        torch.manual_seed(0)
        settings = LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False)
        return get_peft_model(bert(), settings)

    def test_frozen_weights_are_pruned_under_an_adapter(self, adapted: Any, tmp_path: Path) -> None:
        before = weights(adapted)
        callback = train(adapted, tmp_path, MAGNITUDE)
        assert is_clean(adapted)
        names = list(callback.result.plan.masks)
        assert any("query.base_layer" in name for name in names)
        assert not any("lora" in name for name in names)
        for name, mask in callback.result.plan.masks.items():
            value = adapted.get_parameter(name)
            assert int((value == 0).sum()) == round(0.6 * mask.numel())
            assert torch.equal(value[mask], before[name][mask])
        assert any(not torch.equal(value, before[name]) for name, value in weights(adapted).items() if "lora_A" in name)

    def test_training_is_resumed_on_the_dense_model(self, adapted: Any, tmp_path: Path) -> None:
        """An adapter's checkpoint does not hold the weights that are pruned; the masks come from the side file."""
        import copy

        again = copy.deepcopy(adapted)
        config = MagnitudePruningConfig(sparsity=0.6, frequency=4)
        trainer_of(adapted, tmp_path, PruningCallback(config), save_strategy="steps", save_steps=3).train()
        trainer = trainer_of(again, tmp_path, PruningCallback(config), save_strategy="no")
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert_same(weights(adapted), weights(again))

    def test_frozen_weights_have_no_movement(self, adapted: Any, tmp_path: Path) -> None:
        with pytest.raises(PruningError, match="frozen"):
            train(adapted, tmp_path, MovementPruningConfig(sparsity=0.5))


class TestParts:
    def test_of_a_model_that_is_partly_frozen(self, tmp_path: Path) -> None:
        model = bert()
        model.bert.embeddings.requires_grad_(False)
        train(model, tmp_path, MAGNITUDE)
        assert_exactly_pruned(model)

    def test_half_precision(self, tmp_path: Path) -> None:
        model = bert().bfloat16()
        train(model, tmp_path, MAGNITUDE, bf16=True)
        assert_exactly_pruned(model)

    def test_all_matrices_of_a_name(self, tmp_path: Path) -> None:
        model = bert()
        callback = train(model, tmp_path, MagnitudePruningConfig(sparsity=0.5, target_modules=["query"], frequency=1))
        names = [matrix.name for matrix in choose_matrices(model, lambda every, default: set(every))]
        assert set(callback.result.plan.masks) == {name for name in names if name.endswith("query.weight")}
        others = [name for name in names if name not in callback.result.plan.masks and "embeddings" not in name]
        assert all(bool((model.get_parameter(name) != 0).all()) for name in others)
