"""Sentence vectors and their correlation with gold scores, against one sentence at a time and against counted ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BartConfig, BartModel, PreTrainedModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

from hf_prune import PruningError, RandomPruningConfig, prune_model
from hf_prune.report import sentence_vectors, sts_correlation
from tests.small_models import VOCABULARY, case

PAIRS = [
    ("w9 w3 w4", "w3 w4 w9 w5"),
    ("w7 w8 w9 w1 w2 w5", "w6"),
    ("w5 w5 w11", "w5 w12 w11"),
    ("w20", "w21 w22 w23 w24 w25 w26 w27"),
    ("w30 w31 w32", "w30 w31 w32 w33"),
    ("w40 w3", "w50 w9 w10 w3"),
]
FIRST, SECOND = map(list, zip(*PAIRS, strict=True))
GOLD = [4.0, 0.5, 4.0, 1.0, 5.0, 2.5]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{index}": index + 2 for index in range(VOCABULARY - 2)}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=48)


def alone(model: PreTrainedModel, text: str) -> list[float]:
    """The mean over the tokens of one sentence, by a loop."""
    ids = torch.tensor([[int(word[1:]) + 2 for word in text.split()]])
    states = model.base_model(input_ids=ids).last_hidden_state[0].tolist()
    return [sum(column) / len(states) for column in zip(*states, strict=True)]


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def pearson(one: list[float], other: list[float]) -> float:
    means = sum(one) / len(one), sum(other) / len(other)
    return cosine([a - means[0] for a in one], [b - means[1] for b in other])


def ranks(values: list[float]) -> list[float]:
    """Places from 1 on; equal values share the mean of theirs."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


@pytest.mark.parametrize("task", ["bare", "classification", "masked"])
def test_correlations_are_those_of_single_sentences(tokenizer: Any, task: str) -> None:
    model = case("bert", task).model().train()
    found = sts_correlation(model, tokenizer, FIRST, SECOND, GOLD, batch_size=3)
    assert all(module.training for module in model.modules())
    model.eval()
    cosines = [cosine(alone(model, one), alone(model, other)) for one, other in PAIRS]
    assert found.pairs == len(PAIRS)
    assert found.spearman == pytest.approx(pearson(ranks(cosines), ranks(GOLD)), abs=1e-6)
    assert found.pearson == pytest.approx(pearson(cosines, GOLD), abs=1e-4)
    assert found.spearman != pytest.approx(found.pearson, abs=1e-3)


def test_vectors_keep_the_order_and_do_not_depend_on_batches(tokenizer: Any) -> None:
    model = case("distilbert", "bare").model()
    expected = torch.tensor([alone(model, text) for text in FIRST])
    for batch_size in (1, 4, 64):
        found = sentence_vectors(model, tokenizer, FIRST, batch_size=batch_size)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not found.requires_grad


def test_long_sentences_are_cut_off(tokenizer: Any) -> None:
    model = case("bert", "bare").model()
    whole, cut = (sentence_vectors(model, tokenizer, ["w3 w4 w5 w6 w7"], max_length=length) for length in (None, 2))
    torch.testing.assert_close(cut, torch.tensor([alone(model, "w3 w4")]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(whole, cut, atol=1e-2)


def test_scores_may_be_texts_and_pruned_models_differ(tokenizer: Any) -> None:
    model = case("bert", "bare").model()
    dense = sts_correlation(model, tokenizer, FIRST, SECOND, GOLD)
    assert sts_correlation(model, tokenizer, FIRST, SECOND, [str(score) for score in GOLD]) == dense  # type: ignore[misc]
    prune_model(model, RandomPruningConfig(heads=0.5))
    assert sts_correlation(model, tokenizer, FIRST, SECOND, GOLD).pearson != pytest.approx(dense.pearson, abs=1e-3)


@pytest.mark.parametrize(
    ("pairs", "scores", "message"),
    [
        ([], [], "0 first sentences, 0 second ones and 0 scores"),
        (PAIRS[:1], [1.0], "at least two"),
        (PAIRS, GOLD[:-1], "6 first sentences, 6 second ones and 5 scores"),
        (PAIRS, [3] * 6, r"All 6 scores are 3\.0"),
        (PAIRS, [*GOLD[:2], float("nan"), *GOLD[3:]], "The score of pair 2 is nan"),
        (PAIRS, [*GOLD[:5], "many"], "A score is not a number.*many"),
        ([*PAIRS[:2], ("w3", "")], GOLD[:3], "The sentence '' has no tokens"),
    ],
)
def test_pairs_and_scores_that_say_nothing(tokenizer: Any, pairs: Any, scores: Any, message: str) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    with pytest.raises(PruningError, match=message):
        sts_correlation(case("bert", "bare").model(), tokenizer, first, second, scores)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_model_whose_vectors_are_alike_or_broken(tokenizer: Any, value: float) -> None:
    model = case("bert", "bare").model()
    with torch.no_grad():
        model.encoder.layer[-1].output.LayerNorm.weight.fill_(value)
    with pytest.raises(PruningError, match="the same similarity, or one that is not finite"):
        sts_correlation(model, tokenizer, FIRST, SECOND, GOLD)


def test_what_is_no_encoder_of_texts(tokenizer: Any) -> None:
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    sides = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartModel(BartConfig(vocab_size=VOCABULARY, d_model=8, **sides))
    for model in (ViTModel(ViTConfig(**tiny, image_size=32)), bart):
        with pytest.raises(PruningError, match=f"{type(model).__name__} is no encoder of texts alone"):
            sentence_vectors(model, tokenizer, FIRST)
