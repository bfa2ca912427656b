"""Whatever else a `Trainer` can do, it does with a `PruningCallback`, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)

from hf_prune import MagnitudePruningConfig, MovementPruningConfig, PruningCallback, PruningError, start_pruning
from hf_prune.anatomy.matrices import choose_matrices
from tests.small_models import scale_weights
from tests.training.runs import (
    MAGNITUDE,
    assert_exactly_pruned,
    assert_same,
    bert,
    history,
    is_clean,
    kept,
    rows,
    train,
    trainer_of,
    weights,
)


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


def test_hyperparameter_search_writes_side_files_into_the_folder_of_each_run(tmp_path: Path) -> None:
    callback = PruningCallback(MAGNITUDE)
    run = tmp_path / "run-0" / "checkpoint-2"
    run.mkdir(parents=True)
    (tmp_path / "old" / "checkpoint-2").mkdir(parents=True)
    os.utime(tmp_path / "old" / "checkpoint-2", (0, 0))
    callback._output = tmp_path
    callback._pruner = start_pruning(bert(), MAGNITUDE, 8)
    callback._pruner.step = 2
    assert callback.state()["attributes"]["saved"]
    assert [path.parent for path in tmp_path.glob("**/pruning_state.*")] == [run]


@pytest.mark.parametrize("given", ["processing_class", "data_collator"])
def test_the_tokenizer_is_saved_along(given: str, tmp_path: Path) -> None:
    words = Tokenizer(WordLevel({"[PAD]": 0, "a": 1, "good": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
    settings = {given: tokenizer if given == "processing_class" else DataCollatorWithPadding(tokenizer)}
    callback = PruningCallback(MAGNITUDE)
    trainer_of(bert(), tmp_path / "out", callback, trainer_settings=settings).train()
    callback.result.save_pretrained(tmp_path / "small")
    assert AutoTokenizer.from_pretrained(tmp_path / "small").get_vocab() == tokenizer.get_vocab()
