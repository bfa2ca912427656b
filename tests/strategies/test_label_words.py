from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForMaskedLM, HfArgumentParser, PreTrainedModel, PreTrainedTokenizerFast

from hf_prune import PruningError, StaticMaskConfig, StaticPruningConfig, UnsupportedModelError
from hf_prune.strategies.static_mask.label_words import label_word_head
from hf_prune.strategies.static_mask.word_tokens import find_tokens, keys_in_order
from tests.family_models import heads_of, sample
from tests.small_models import case
from tests.worded import ANSWERS, LABELS, MASK, OTHER_WORDS, WORDS, answering_bert, ids_of, save_tokenizer, worded_bert

BATCH = case("bert", "classification").batch()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def settings(tokenizer: str, words: Any = WORDS, **more: Any) -> StaticPruningConfig:
    return StaticPruningConfig(sparsity=0.5, label_words=words, label_word_tokenizer=tokenizer, **more)


def logits(model: PreTrainedModel, config: StaticPruningConfig, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    label_word_head(model, config).put_into(model)
    with torch.no_grad():
        result: torch.Tensor = model(**batch).logits
    return result


class TestSettings:
    @pytest.mark.parametrize("config_class", [StaticPruningConfig, StaticMaskConfig])
    @pytest.mark.parametrize(
        "text", ["positive=great, negative = terrible", '{"positive": "great", "negative": "terrible"}']
    )
    def test_text_is_a_dictionary(self, config_class: Any, text: str) -> None:
        config = config_class(sparsity=0.5, label_words=text)
        assert config.label_words == {"positive": "great", "negative": "terrible"}
        json.dumps(config.to_dict())

    def test_on_a_command_line(self) -> None:
        parser = HfArgumentParser(StaticPruningConfig)
        arguments = [
            "--sparsity",
            "0.5",
            "--label_words",
            "positive=great,negative=terrible",
            "--label_word_head",
            "mlm",
        ]
        (config,) = parser.parse_args_into_dataclasses(arguments)
        assert config == StaticPruningConfig(
            sparsity=0.5, label_words={"positive": "great", "negative": "terrible"}, label_word_head="mlm"
        )
        (config,) = parser.parse_args_into_dataclasses(["--sparsity", "0.5"])
        assert config.label_words is None

    @pytest.mark.parametrize("config_class", [StaticPruningConfig, StaticMaskConfig])
    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"label_words": {}}, "label_words={} must be a word for every label"),
            ({"label_words": {"a": 1}}, "must be a word for every label"),
            ({"label_words": {"a": ""}}, "must be a word for every label"),
            ({"label_words": ["a"]}, "must be a word for every label"),
            ({"label_words": "great"}, "'great' must be a word for every label"),
            ({"label_words": "a=b,a=c"}, "must be a word for every label"),
            ({"label_words": '{"a": '}, "must be a word for every label"),
            ({"label_words": WORDS, "label_word_head": "cls"}, "label_word_head='cls' is unknown"),
            ({"label_word_head": "mlm"}, "label_word_head='mlm' must be a text, and is about label_words"),
            ({"label_word_tokenizer": "x"}, "label_word_tokenizer='x' .* give these, too"),
            ({"label_words": WORDS, "label_word_tokenizer": 3}, "label_word_tokenizer=3 must be a text"),
            ({"label_words": WORDS, "label_word_model": "x"}, "label_word_model='x' needs label_word_head='mlm'"),
        ],
    )
    def test_bad(self, config_class: Any, bad: dict[str, Any], message: str) -> None:
        with pytest.raises(PruningError, match=message):
            config_class(sparsity=0.5, **bad)


class TestTokens:
    def test_of_whole_words(self, tokenizer: str) -> None:
        found = find_tokens(worded_bert(), WORDS, tokenizer)
        assert [found.ids[label] for label in WORDS] == ids_of(*WORDS.values())
        assert found.mask_token == MASK

    def test_of_bytes_the_word_within_a_sentence(self, tmp_path: Path) -> None:
        """Byte-level tokenizers have one token for a word after a space, and often another one without."""
        pieces = ["Ġ", "g", "r", "a", "t", "o", "k", "ok", "gr", "Ġgr", "at", "Ġgrat", "grat"]
        merges = [("g", "r"), ("Ġ", "gr"), ("a", "t"), ("Ġgr", "at"), ("gr", "at"), ("o", "k")]
        inner = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(tmp_path)
        found = find_tokens(worded_bert(), {"a": "grat", "b": "ok"}, str(tmp_path))
        assert found.ids == {"a": pieces.index("Ġgrat"), "b": pieces.index("ok")}
        assert found.mask_token is None
        with pytest.raises(PruningError, match=r"label word 'grok' must be one token, .* makes \['gr', 'ok'\] of it"):
            find_tokens(worded_bert(), {"a": "grok"}, str(tmp_path))

    @pytest.mark.parametrize("word", ["unknown", "great fine"])
    def test_that_are_not_one(self, tokenizer: str, word: str) -> None:
        with pytest.raises(PruningError, match=f"label word '{word}' must be one token"):
            find_tokens(worded_bert(), {"positive": word}, tokenizer)

    def test_by_default_the_model_s_own(self, tmp_path: Path) -> None:
        model = worded_bert()
        with pytest.raises(PruningError, match="does not say where its tokenizer is; name it with"):
            find_tokens(model, WORDS, None)
        save_tokenizer(tmp_path)
        model.save_pretrained(tmp_path)
        assert find_tokens(type(model).from_pretrained(tmp_path), WORDS, None).mask_token == MASK
        with pytest.raises(PruningError, match="No tokenizer for label_words can be read from"):
            find_tokens(model, WORDS, str(tmp_path / "nowhere"))


class TestLabels:
    def test_are_called_by_name_or_number(self) -> None:
        model = worded_bert()
        assert keys_in_order(model, "classification", WORDS) == list(LABELS.values())
        assert keys_in_order(model, "classification", {"2": "c", "0": "a", "1": "b"}) == ["0", "1", "2"]
        assert keys_in_order(answering_bert(), "answers", {"end": "no", "start": "yes"}) == ["start", "end"]

    def test_names_that_are_numbers(self) -> None:
        model = case("bert", "classification").model(id2label={0: "2", 1: "1", 2: "0"})
        assert keys_in_order(model, "classification", {"0": "a", "1": "b", "2": "c"}) == ["2", "1", "0"]

    def test_a_regression_has_one_word(self) -> None:
        model = case("bert", "regression").model()
        assert keys_in_order(model, "classification", {"similar": "yes"}) == ["similar"]
        with pytest.raises(PruningError, match="no word for 'LABEL_0'"):
            keys_in_order(model, "classification", {"a": "yes", "b": "no"})

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                {"positive": "great", "negative": "terrible"},
                "no word for 'neutral'; the model's labels are 'negative', ",
            ),
            ({"0": "a", "2": "b"}, "no word for '1'"),
            (WORDS | {"joyful": "yes"}, "a word for 'joyful', which is no label"),
            ({"0": "a", "neutral": "b", "2": "c"}, "no word for 'negative'"),
        ],
    )
    def test_missing_and_unknown(self, words: dict[str, str], message: str) -> None:
        with pytest.raises(PruningError, match=message):
            keys_in_order(worded_bert(), "classification", words)


class TestEmbeddings:
    def test_first_token_times_the_words_embeddings(self, tokenizer: str) -> None:
        model = worded_bert()
        with torch.no_grad():
            hidden = model.bert(BATCH["input_ids"], BATCH["attention_mask"]).last_hidden_state
        words = model.get_input_embeddings().weight[ids_of("terrible", "fine", "great")]
        assert torch.allclose(logits(model, settings(tokenizer), BATCH), hidden[:, 0] @ words.T, atol=1e-5)
        assert not model.classifier.word_rows.requires_grad

    def test_regression(self, tokenizer: str) -> None:
        model = case("bert", "regression").model()
        batch = case("bert", "regression").batch()
        with torch.no_grad():
            hidden = model.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        word = model.get_input_embeddings().weight[ids_of("yes")[0]]
        found = logits(model, settings(tokenizer, {"0": "yes"}), batch)
        assert torch.allclose(found[:, 0], hidden[:, 0] @ word, atol=1e-5)
        assert model(**batch).loss.isfinite()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (WORDS | {"neutral": "great"}, "two labels the same word"),
            (WORDS | {"neutral": "good"}, "label word 'good' must be one token"),
        ],
    )
    def test_bad_words(self, tokenizer: str, words: dict[str, str], message: str) -> None:
        with pytest.raises(PruningError, match=message):
            label_word_head(worded_bert(), settings(tokenizer, words))

    def test_tokenizer_of_a_larger_model(self, tokenizer: str) -> None:
        with pytest.raises(PruningError, match="'terrible' is token 56, but the model has 50 word embeddings"):
            label_word_head(worded_bert(vocab_size=50), settings(tokenizer))

    def test_embeddings_of_another_size_than_hidden_states(self, tokenizer: str) -> None:
        model = case("electra", "classification").model()
        with pytest.raises(PruningError, match="have 16 values and hidden states 32: use label_word_head='mlm'"):
            label_word_head(model, settings(tokenizer, OTHER_WORDS))


FAMILIES = ["bert", "roberta", "distilbert", "electra", "deberta-v2", "albert", "mpnet", "xlm-roberta"]


class TestMaskedLanguageModel:
    @pytest.mark.parametrize("model_type", FAMILIES)
    def test_same_logits_at_the_words_columns(self, model_type: str, tokenizer: str, tmp_path: Path) -> None:
        by_task = {head.model_class.__name__.split("For")[-1]: head for head in heads_of(model_type)}
        language = by_task["MaskedLM"].model()
        language.save_pretrained(tmp_path)
        model = by_task["SequenceClassification"].model_class.from_pretrained(tmp_path, num_labels=3).eval()
        batch = sample(model)
        batch["input_ids"][batch["input_ids"] == MASK] = 7
        batch["input_ids"][1, 2] = MASK
        with torch.no_grad():
            every = language(**batch).logits[:, :, ids_of("no", "w7", "yes")]
        config = settings(tokenizer, OTHER_WORDS, label_word_head="mlm")
        expected = torch.stack([every[0, 0], every[1, 2], every[2, 0]])
        assert torch.allclose(logits(model, config, batch), expected, atol=1e-4)

    def test_answers(self, tokenizer: str, tmp_path: Path) -> None:
        language = case("bert", "masked").model()
        language.save_pretrained(tmp_path)
        model = answering_bert()
        model.bert.load_state_dict(language.bert.state_dict())
        config = settings(tokenizer, ANSWERS, label_word_head="mlm", label_word_model=str(tmp_path))
        label_word_head(model, config).put_into(model)
        batch = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            found, expected = model(**batch), language(**batch).logits[:, :, ids_of("yes", "no")]
        assert torch.allclose(found.start_logits, expected[..., 0], atol=1e-4)
        assert torch.allclose(found.end_logits, expected[..., 1], atol=1e-4)

    def test_checkpoint_without_the_head(self, tokenizer: str, tmp_path: Path) -> None:
        model = worded_bert()
        model.save_pretrained(tmp_path)
        config = settings(tokenizer, label_word_head="mlm", label_word_model=str(tmp_path))
        with pytest.raises(PruningError, match=r"has none: cls\.predictions\.\S+ is missing. Name one that has with"):
            label_word_head(model, config)

    def test_no_masked_language_model(self, tokenizer: str, tmp_path: Path) -> None:
        model = heads_of("gpt2")[0].model()
        model.save_pretrained(tmp_path)
        config = settings(tokenizer, label_word_head="mlm", label_word_model=str(tmp_path))
        with pytest.raises(PruningError, match="cannot be read as one"):
            label_word_head(worded_bert(), config)

    def test_of_another_size(self, tokenizer: str, tmp_path: Path) -> None:
        case("bert", "masked").model(hidden_size=48).save_pretrained(tmp_path)
        config = settings(tokenizer, label_word_head="mlm", label_word_model=str(tmp_path))
        with pytest.raises(PruningError, match=r"dense_weight .* has the shape \[48, 48\], not \[32, 32\]"):
            label_word_head(worded_bert(), config)

    def test_head_with_something_more_in_it(
        self, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        language = case("bert", "masked").model()
        language.save_pretrained(tmp_path)
        loaded = AutoModelForMaskedLM.from_pretrained
        config = settings(tokenizer, label_word_head="mlm", label_word_model=str(tmp_path))

        def with_more(*args: Any, **kwargs: Any) -> Any:
            model, found = loaded(*args, **kwargs)
            model.cls.predictions.register_forward_hook(lambda module, inputs, output: output.tanh())
            return model, found

        monkeypatch.setattr(AutoModelForMaskedLM, "from_pretrained", with_more)
        with pytest.raises(UnsupportedModelError, match="head of BertForMaskedLM is not one dense layer"):
            label_word_head(worded_bert(), config)
