"""Label words in place of the head of a model whose own weights are masked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoModelForSequenceClassification, PreTrainedModel

from hf_prune import (
    MagnitudePruningConfig,
    PruningCallback,
    PruningError,
    StaticPruningConfig,
    prune_model,
    start_pruning,
)
from tests.small_models import case
from tests.training.runs import BERT, assert_same, train, trainer_of, weights
from tests.worded import ANSWERS, LABELS, OTHER_WORDS, WORDS, answering_bert, ids_of, save_tokenizer, worded_bert

BATCH = BERT.batch()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def config(tokenizer: str, words: dict[str, str] = WORDS, **more: Any) -> StaticPruningConfig:
    return StaticPruningConfig(
        sparsity=0.5, score_learning_rate=0.05, label_words=words, label_word_tokenizer=tokenizer, **more
    )


def logits(model: PreTrainedModel, batch: dict[str, torch.Tensor] = BATCH) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(**batch).logits
    return result


def vectors(*words: str) -> torch.Tensor:
    return worded_bert().get_input_embeddings().weight[ids_of(*words)].detach()


@pytest.fixture(scope="module")
def saved(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A checkpoint of a trained model with label words, and the model's logits."""
    folder = tmp_path_factory.mktemp("saved")
    model = worded_bert()
    result = train(model, folder / "run", config(tokenizer)).result
    assert result is not None
    result.save_pretrained(folder / "model")
    return folder / "model", logits(model)


class TestTraining:
    def test_float16_leaves_nothing_to_its_scaler(self, tokenizer: str) -> None:
        model = worded_bert()
        pruner = start_pruning(model, config(tokenizer), 4)
        pruner.take_scaler(torch.amp.GradScaler("cpu", enabled=False))
        with pytest.raises(PruningError, match=r"float16's gradient scaler finds no gradients. Train with bf16=True"):
            pruner.take_scaler(torch.amp.GradScaler("cpu"))
        pruner.abandon()

    def test_the_head_is_still_and_masks_learn(self, tokenizer: str, tmp_path: Path) -> None:
        model = worded_bert()
        before = weights(model)
        callback = PruningCallback(config(tokenizer))
        trainer = trainer_of(model, tmp_path, callback, learning_rate=0.5, weight_decay=0.5)
        trainer.train()
        assert torch.equal(model.classifier.word_rows, vectors("terrible", "fine", "great"))
        assert not {name for name in model.state_dict() if name.startswith("classifier")} & {"classifier.dense.weight"}
        assert callback.result is not None
        kept = callback.result.plan.masks
        assert {int(mask.sum()) * 2 == mask.numel() for mask in kept.values()} == {True}
        for name, value in model.bert.state_dict().items():
            expected = before[f"bert.{name}"]
            assert torch.equal(value, expected * kept[f"bert.{name}"] if f"bert.{name}" in kept else expected), name
        hidden = model.bert(BATCH["input_ids"], BATCH["attention_mask"]).last_hidden_state[:, 0]
        words = vectors("terrible", "fine", "great")
        assert torch.allclose(logits(model), hidden.detach() @ words.T, atol=1e-5)
        assert not [group for group in trainer.optimizer.param_groups if group["params"]]

    def test_resumed_run_is_the_same_to_the_bit(self, tokenizer: str, tmp_path: Path) -> None:
        whole = worded_bert(dropout=0.1)
        train(whole, tmp_path, config(tokenizer), save_strategy="steps", save_steps=3)
        again = worded_bert(dropout=0.1)
        trainer = trainer_of(again, tmp_path, PruningCallback(config(tokenizer)))
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert_same(weights(again), weights(whole))
        assert torch.equal(logits(again), logits(whole))

    def test_checkpoints_on_the_way_are_whole(self, tokenizer: str, tmp_path: Path) -> None:
        train(worded_bert(), tmp_path, config(tokenizer), save_strategy="steps", save_steps=3)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-3")
        assert torch.equal(model.classifier.word_rows, vectors("terrible", "fine", "great"))

    def test_a_second_training_has_its_own_words(self, tokenizer: str, tmp_path: Path) -> None:
        model = worded_bert()
        train(model, tmp_path / "first", config(tokenizer))
        train(model, tmp_path / "second", config(tokenizer, OTHER_WORDS))
        assert torch.equal(model.classifier.word_rows, vectors("no", "w7", "yes"))
        model.save_pretrained(tmp_path / "model")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        assert torch.equal(logits(again), logits(model))

    def test_failed_training_gives_the_head_back(self, tokenizer: str) -> None:
        model = worded_bert()
        before, expected = weights(model), logits(model)
        pruner = start_pruning(model, config(tokenizer), 4)
        assert model.config.pruning["label_words"]["words"] == ["terrible", "fine", "great"]
        assert not torch.equal(logits(model), expected)
        pruner.abandon()
        assert_same(weights(model), before)
        assert torch.equal(logits(model), expected)
        assert not hasattr(model.config, "pruning")
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not model.bert._forward_hooks

    def test_other_words_than_another_trainer_began_with(self, tokenizer: str, tmp_path: Path) -> None:
        model = worded_bert()
        trainer_of(model, tmp_path, PruningCallback(config(tokenizer)))
        train(model, tmp_path, config(tokenizer, OTHER_WORDS))
        assert torch.equal(model.classifier.word_rows, vectors("no", "w7", "yes"))

    def test_bad_words_before_anything_is_touched(self, tokenizer: str, tmp_path: Path) -> None:
        model = worded_bert()
        before = weights(model)
        with pytest.raises(PruningError, match="no word for 'negative'"):
            trainer_of(model, tmp_path, PruningCallback(config(tokenizer, {"positive": "great"})))
        assert_same(weights(model), before)
        assert not hasattr(model.config, "pruning")

    def test_answers(self, tokenizer: str, tmp_path: Path) -> None:
        model = answering_bert()
        pruner = start_pruning(model, config(tokenizer, ANSWERS), 2, torch.optim.SGD(model.parameters(), lr=0.1))
        batch = case("bert", "answers").batch()
        model(**batch).loss.backward()
        pruner.after_step()
        pruner.finish()
        model.save_pretrained(tmp_path)
        again = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
        with torch.no_grad():
            hidden = model.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state
            found = again(**batch)
        rows = model.get_input_embeddings().weight[ids_of("yes", "no")]
        assert torch.allclose(torch.stack([found.start_logits, found.end_logits], -1), hidden @ rows.T, atol=1e-5)


class TestCheckpoint:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_same_logits(self, saved: tuple[Path, torch.Tensor], dtype: torch.dtype) -> None:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            saved[0], dtype=dtype, output_loading_info=True
        )
        assert model.classifier.word_rows.dtype == dtype
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        if dtype is torch.float32:
            assert torch.equal(logits(model), saved[1])
        else:
            assert torch.allclose(logits(model).float(), saved[1], atol=1.5)

    def test_saved_again(self, saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
        AutoModelForSequenceClassification.from_pretrained(saved[0]).save_pretrained(tmp_path)
        assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path)), saved[1])

    def test_the_card_says_that_hf_prune_is_needed(self, saved: tuple[Path, torch.Tensor]) -> None:
        card = (saved[0] / "README.md").read_text(encoding="utf8")
        assert "import hf_prune  # lets transformers build the head, which scores label words" in card

    def test_without_hf_prune_loading_fails(
        self, saved: tuple[Path, torch.Tensor], run_python: Callable[..., str]
    ) -> None:
        code = (
            "import sys\n"
            "from transformers import AutoModelForSequenceClassification\n"
            "try:\n"
            "    AutoModelForSequenceClassification.from_pretrained(sys.argv[1])\n"
            "except RuntimeError as error:\n"
            "    print(error)\n"
            "assert 'hf_prune' not in sys.modules"
        )
        assert "ignore_mismatched_sizes" in run_python(code, saved[0])

    def test_for_another_task_the_head_does_not_matter(self, saved: tuple[Path, torch.Tensor]) -> None:
        model = AutoModel.from_pretrained(saved[0])
        assert model.pooler is not None
        assert type(AutoModelForQuestionAnswering.from_pretrained(saved[0]).qa_outputs) is torch.nn.Linear

    def test_other_number_of_labels(self, saved: tuple[Path, torch.Tensor]) -> None:
        with pytest.raises(PruningError, match=r"label words terrible, fine, great, but this Bert.* has 4 labels"):
            AutoModelForSequenceClassification.from_pretrained(saved[0], num_labels=4)

    def test_metadata_for_a_class_without_such_a_head(self, saved: tuple[Path, torch.Tensor]) -> None:
        entry = json.loads((saved[0] / "config.json").read_text())["pruning"]
        entry = {name: entry[name] for name in ("format", "library", "blocks", "label_words")}
        with pytest.raises(PruningError, match="has no head that they are known to stand in for"):
            case_of_bart(entry)

    def test_cut_afterwards(self, saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(saved[0])
        pruned = prune_model(model, MagnitudePruningConfig(params=0.5, round_to=1)).model
        pruned.save_pretrained(tmp_path)
        assert pruned.config.pruning["blocks"]
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(logits(again), logits(pruned))
        assert torch.equal(again.classifier.word_rows, vectors("terrible", "fine", "great"))


def case_of_bart(entry: dict[str, Any]) -> PreTrainedModel:
    from transformers import BartConfig, BartForSequenceClassification

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=61, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes, id2label=LABELS)
    config.pruning = entry
    return BartForSequenceClassification(config)
