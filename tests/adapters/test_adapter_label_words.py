"""Label words in place of a trained head, in a PEFT adapter."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hf_prune import PruningCallback, PruningError, StaticMaskConfig, UnsupportedModelError
from hf_prune.gates.label_word_head import LabelWordHead
from tests.adapters.masked_models import BATCH, logits, set_random_masks, with_zeros
from tests.family_models import heads_of, sample
from tests.small_models import case
from tests.training.runs import assert_same, trainer_of, weights
from tests.worded import ANSWERS, MASK, OTHER_WORDS, WORDS, answering_bert, ids_of, save_tokenizer, worded_bert


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def config(tokenizer: str, words: dict[str, str] = WORDS, **more: Any) -> StaticMaskConfig:
    settings: dict[str, Any] = {"sparsity": 0.5, "score_learning_rate": 0.05, "task_type": "SEQ_CLS"}
    return StaticMaskConfig(**settings | {"label_words": words, "label_word_tokenizer": tokenizer} | more)


def expected_logits(masks: dict[str, torch.Tensor], *words: str) -> torch.Tensor:
    """First tokens of a model with zeros, times embeddings."""
    model = with_zeros(worded_bert(), masks)
    with torch.no_grad():
        hidden = model.bert(BATCH["input_ids"], BATCH["attention_mask"]).last_hidden_state
        return hidden[:, 0] @ model.get_input_embeddings().weight[ids_of(*words)].T


@pytest.fixture
def model(tokenizer: str) -> PeftModel:
    return get_peft_model(worded_bert(), config(tokenizer)).eval()


@pytest.fixture
def saved(model: PeftModel, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    set_random_masks(model)
    model.save_pretrained(tmp_path / "mask")
    return tmp_path / "mask", logits(model)


class TestForward:
    def test_is_the_masked_first_token_times_words(self, model: PeftModel) -> None:
        masks = set_random_masks(model)
        assert torch.allclose(logits(model), expected_logits(masks, "terrible", "fine", "great"), atol=1e-5)

    def test_only_scores_learn(self, model: PeftModel) -> None:
        learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert len(learning) == 18
        assert all(name.endswith("static_mask_scores.default") for name in learning)

    @pytest.mark.parametrize("model_type", ["roberta", "distilbert", "deberta-v2", "llama"])
    def test_of_other_families(self, model_type: str, tokenizer: str, tmp_path: Path) -> None:
        head = next(head for head in heads_of(model_type) if "SequenceClass" in head.model_class.__name__)
        base, plain = head.model(num_labels=3), head.model(num_labels=3)
        batch = sample(base)
        model = get_peft_model(base, config(tokenizer, OTHER_WORDS)).eval()
        with_zeros(plain, set_random_masks(model))
        rows = plain.get_input_embeddings().weight[ids_of("no", "w7", "yes")]
        last = (batch["input_ids"] != 1).sum(-1) - 1 if model_type == "llama" else torch.zeros(3, dtype=torch.long)
        with torch.no_grad():
            token = plain.base_model(**batch)[0][torch.arange(3), last]
            assert torch.allclose(logits(model, batch), token @ rows.T, atol=1e-4)
            with model.disable_adapter():
                assert torch.equal(logits(model, batch), logits(head.model(num_labels=3), batch))
        expected = logits(model, batch)
        model.merge_and_unload().save_pretrained(tmp_path)
        assert torch.equal(logits(head.model_class.from_pretrained(tmp_path), batch), expected)

    def test_answers(self, tokenizer: str, tmp_path: Path) -> None:
        model = get_peft_model(answering_bert(), config(tokenizer, ANSWERS, task_type="QUESTION_ANS")).eval()
        plain = with_zeros(answering_bert(), set_random_masks(model))
        batch = case("bert", "answers").batch()
        with torch.no_grad():
            hidden = plain.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state
            rows = plain.get_input_embeddings().weight[ids_of("yes", "no")]
            found = model(**batch)
        assert torch.allclose(found.start_logits, hidden @ rows[0], atol=1e-5)
        assert torch.allclose(found.end_logits, hidden @ rows[1], atol=1e-5)
        model.save_pretrained(tmp_path)
        assert all(name.endswith("bits") for name in load_file(tmp_path / "adapter_model.safetensors"))
        with torch.no_grad():
            again = PeftModel.from_pretrained(answering_bert(), tmp_path).eval()(**batch)
        assert torch.equal(again.start_logits, found.start_logits)

    def test_a_copy_follows_its_own_adapter(self, model: PeftModel) -> None:
        set_random_masks(model)
        before, copied = logits(model), copy.deepcopy(model)
        with model.disable_adapter():
            assert torch.equal(logits(copied), before)


class TestFiles:
    def test_hold_masks_only(self, saved: tuple[Path, torch.Tensor]) -> None:
        tensors = load_file(saved[0] / "adapter_model.safetensors")
        assert len(tensors) == 18
        assert all(name.endswith(".static_mask_bits") and value.dtype == torch.uint8 for name, value in tensors.items())

    def test_configuration(self, saved: tuple[Path, torch.Tensor]) -> None:
        data = json.loads((saved[0] / "adapter_config.json").read_text())
        assert data["label_words"] == WORDS
        assert data["label_word_ids"] == {label: ids_of(word)[0] for label, word in WORDS.items()}
        assert data["modules_to_save"] is None
        assert data["mask_token_id"] is None

    @pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
    def test_same_logits_without_the_tokenizer(
        self, saved: tuple[Path, torch.Tensor], low_cpu_mem_usage: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hf_prune.strategies.static_mask.word_tokens.AutoTokenizer", None)
        model = PeftModel.from_pretrained(worded_bert(), saved[0], low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(logits(model), saved[1])
        assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def test_saved_twice_is_the_same(self, saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
        PeftModel.from_pretrained(worded_bert(), saved[0]).save_pretrained(tmp_path / "again")
        names = ("adapter_config.json", "adapter_model.safetensors")
        assert [(saved[0] / name).read_bytes() for name in names] == [
            (tmp_path / "again" / name).read_bytes() for name in names
        ]

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("label_word_ids", {"positive": 1}, "must have the labels that label_words have"),
            (
                "label_word_ids",
                {"positive": 1, "neutral": 2, "negative": 10**9},
                "token 1000000000, but the model has 61",
            ),
            (
                "label_word_ids",
                {"positive": 1, "neutral": 2, "negative": -3},
                "must be a token's number for every label",
            ),
            ("label_word_ids", [1, 2, 3], "must be a token's number for every label"),
            ("mask_token_id", "[MASK]", "must be a token's number"),
            ("label_words", {"positive": "great"}, "must have the labels that label_words have"),
        ],
    )
    def test_edited_configuration(self, saved: tuple[Path, torch.Tensor], name: str, value: Any, message: str) -> None:
        path = saved[0] / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        base = worded_bert()
        with pytest.raises(PruningError, match=message):
            PeftModel.from_pretrained(base, saved[0])
        assert_same(weights(base), weights(worded_bert()))


class TestSeveralAdapters:
    def test_switching_switches_heads(self, model: PeftModel, tokenizer: str) -> None:
        first = set_random_masks(model)
        model.add_adapter("other", config(tokenizer, OTHER_WORDS))
        second = set_random_masks(model, "other", seed=1)
        for _ in range(2):
            assert torch.allclose(logits(model), expected_logits(first, "terrible", "fine", "great"), atol=1e-5)
            model.set_adapter("other")
            assert torch.allclose(logits(model), expected_logits(second, "no", "w7", "yes"), atol=1e-5)
            model.set_adapter("default")

    def test_beside_one_with_a_trained_head(self, model: PeftModel, tokenizer: str, tmp_path: Path) -> None:
        masks = set_random_masks(model)
        model.add_adapter("trained", config(tokenizer, label_words=None, label_word_tokenizer=None))
        other = set_random_masks(model, "trained", seed=1)
        model.set_adapter("trained")
        with torch.no_grad():
            model.get_base_model().classifier.modules_to_save["trained"].weight.mul_(2)
        plain = with_zeros(worded_bert(), other)
        with torch.no_grad():
            plain.classifier.weight.mul_(2)
        assert torch.equal(logits(model), logits(plain))
        model.save_pretrained(tmp_path)
        stored = load_file(tmp_path / "trained" / "adapter_model.safetensors")
        assert len([name for name in stored if "classifier" in name]) == 2
        model.set_adapter("default")
        assert torch.allclose(logits(model), expected_logits(masks, "terrible", "fine", "great"), atol=1e-5)

    def test_on_top_of_one_with_a_trained_head(self, tokenizer: str) -> None:
        plain = config(tokenizer, label_words=None, label_word_tokenizer=None)
        model = get_peft_model(worded_bert(), plain).eval()
        before = logits(model)
        model.add_adapter("words", config(tokenizer))
        masks = set_random_masks(model, "words")
        assert torch.equal(logits(model), before)
        model.set_adapter("words")
        assert torch.allclose(logits(model), expected_logits(masks, "terrible", "fine", "great"), atol=1e-5)

    def test_disabled_is_the_dense_model_with_its_own_head(self, model: PeftModel) -> None:
        set_random_masks(model)
        before = logits(model)
        with model.disable_adapter():
            assert torch.equal(logits(model), logits(worded_bert()))
        assert torch.equal(logits(model), before)

    def test_deleted(self, model: PeftModel, tokenizer: str) -> None:
        model.add_adapter("other", config(tokenizer, OTHER_WORDS))
        second = set_random_masks(model, "other", seed=1)
        with pytest.warns(UserWarning, match="now deleted"):
            model.delete_adapter("default")
        assert torch.allclose(logits(model), expected_logits(second, "no", "w7", "yes"), atol=1e-5)

    def test_the_last_one_deleted_shows_the_own_head(self, model: PeftModel) -> None:
        set_random_masks(model)
        model.base_model.delete_adapter("default")
        assert torch.equal(logits(model.base_model), logits(worded_bert()))


class TestMerging:
    def test_unloaded_is_the_dense_model_with_its_own_head(self, model: PeftModel) -> None:
        set_random_masks(model)
        base = model.unload()
        assert_same(weights(base), weights(worded_bert()))
        assert torch.equal(logits(base), logits(worded_bert()))
        assert not base.base_model._forward_hooks
        assert not hasattr(base.config, "pruning")

    def test_merged_and_unmerged(self, model: PeftModel) -> None:
        masks = set_random_masks(model)
        model.merge_adapter()
        expected = expected_logits(masks, "terrible", "fine", "great")
        assert torch.allclose(logits(model), expected, atol=1e-5)
        model.unmerge_adapter()
        assert torch.allclose(logits(model), expected, atol=1e-5)

    def test_merged_checkpoint(self, model: PeftModel, tmp_path: Path) -> None:
        set_random_masks(model)
        expected = logits(model)
        merged = model.merge_and_unload()
        assert torch.equal(logits(merged), expected)
        merged.save_pretrained(tmp_path)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(logits(again), expected)
        assert again.config.pruning["label_words"]["words"] == ["terrible", "fine", "great"]
        assert again.config.pruning["weights"]["matrices"] == 18
        assert isinstance(again.classifier, LabelWordHead)

    def test_the_adapter_that_is_named(self, model: PeftModel, tokenizer: str) -> None:
        model.add_adapter("other", config(tokenizer, OTHER_WORDS))
        second = set_random_masks(model, "other", seed=1)
        merged = model.merge_and_unload(adapter_names=["other"])
        assert torch.allclose(logits(merged), expected_logits(second, "no", "w7", "yes"), atol=1e-5)

    def test_beside_a_module_that_was_trained(self, tokenizer: str) -> None:
        model = get_peft_model(worded_bert(), config(tokenizer, modules_to_save=["LayerNorm"])).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name:
                    parameter.add_(0.3)
        set_random_masks(model)
        expected = logits(model)
        assert torch.equal(logits(model.merge_and_unload()), expected)


class TestMaskedLanguageModel:
    @pytest.fixture
    def language(self, tmp_path: Path) -> PreTrainedModel:
        """A masked language model, in a folder with its tokenizer."""
        save_tokenizer(tmp_path / "base")
        model = case("bert", "masked").model()
        model.save_pretrained(tmp_path / "base")
        return model

    @pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
    def test_same_logits_as_in_that_model(
        self, language: PreTrainedModel, tmp_path: Path, low_cpu_mem_usage: bool
    ) -> None:
        def base() -> PreTrainedModel:
            return AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)

        settings = {"sparsity": 0.5, "task_type": "SEQ_CLS", "label_words": OTHER_WORDS, "label_word_head": "mlm"}
        model = get_peft_model(base(), StaticMaskConfig(**settings)).eval()
        masks = set_random_masks(model)
        ids = BATCH["input_ids"].clone()
        ids[ids == MASK] = 9
        ids[1, 3] = MASK
        batch = {"input_ids": ids, "attention_mask": BATCH["attention_mask"]}
        with torch.no_grad():
            every = with_zeros(language, masks)(**batch).logits[..., ids_of("no", "w7", "yes")]
        expected = every[torch.arange(4), torch.tensor([0, 3, 0, 0])]
        assert torch.allclose(logits(model, batch), expected, atol=1e-4)
        model.save_pretrained(tmp_path / "mask")
        again = PeftModel.from_pretrained(base(), tmp_path / "mask", low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(logits(again, batch), logits(model, batch))
        merged = again.merge_and_unload()
        assert torch.allclose(logits(merged, batch), expected, atol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        assert torch.equal(logits(loaded, batch), logits(merged, batch))


class TestTraining:
    def test_masks_learn_and_the_head_is_still(self, model: PeftModel, tmp_path: Path) -> None:
        base = weights(worded_bert())
        head = model.get_base_model().classifier.modules_to_save["default"]
        rows = head.word_rows.clone()
        callback = PruningCallback()
        trainer_of(model.train(), tmp_path / "run", callback, learning_rate=0.5, save_strategy="steps").train()
        assert callback.result is not None
        assert callback.result.report.removed * 2 == callback.result.report.weights
        assert torch.equal(head.word_rows, rows)
        state = model.get_base_model().state_dict()
        assert torch.equal(state["classifier.original_module.weight"], base["classifier.weight"])
        again = PeftModel.from_pretrained(worded_bert(), tmp_path / "run" / "checkpoint-6")
        assert torch.equal(logits(again), logits(model))

    def test_other_adapters_stay_as_they_are(self, model: PeftModel, tokenizer: str, tmp_path: Path) -> None:
        set_random_masks(model)
        before = logits(model)
        model.add_adapter("other", config(tokenizer, OTHER_WORDS))
        model.set_adapter("other")
        trainer_of(model.train(), tmp_path, PruningCallback()).train()
        model.set_adapter("default")
        assert torch.equal(logits(model), before)


class TestRefusals:
    def test_head_that_would_be_trained(self, tokenizer: str) -> None:
        with pytest.raises(PruningError, match="would train classifier, which label_words stand in for"):
            config(tokenizer, modules_to_save=["classifier"])

    def test_models_without_such_a_head(self, tokenizer: str) -> None:
        model = case("bert", "tokens").model()
        before = weights(model)
        with pytest.raises(UnsupportedModelError, match="BertForTokenClassification has no head"):
            get_peft_model(model, config(tokenizer, task_type="TOKEN_CLS"))
        assert_same(weights(model), before)

    def test_bad_words_of_a_second_adapter(self, model: PeftModel, tokenizer: str) -> None:
        before = logits(model)
        with pytest.raises(PruningError, match="label word 'good' must be one token"):
            model.add_adapter("other", config(tokenizer, WORDS | {"positive": "good"}))
        assert list(model.peft_config) == ["default"]
        assert torch.equal(logits(model), before)
