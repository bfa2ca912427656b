from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from hf_prune import PruningError, UnsupportedModelError
from hf_prune.anatomy import UndoLog
from hf_prune.gates.head_places import PlacedHead, head_place
from hf_prune.gates.label_word_head import HeadForm, LabelWordHead, label_word_scores
from tests.family_models import PADDING, Head, heads_of, sample

FIRST_TOKEN = [
    "bert", "albert", "ernie", "megatron-bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet",
    "deberta", "deberta-v2", "distilbert",
]  # fmt: skip
LAST_TOKEN = ["llama", "gpt2", "qwen3", "opt"]
ANSWERS = ["bert", "distilbert", "roberta", "deberta-v2", "llama"]
MASK = 60


def head_of(model_type: str, ending: str = "ForSequenceClassification") -> Head:
    return next(head for head in heads_of(model_type) if head.model_class.__name__.endswith(ending))


def hidden_of(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    result: torch.Tensor = model.base_model(**batch)[0]
    return result


def place(model: PreTrainedModel, task: str = "classification", mask: int | None = None) -> tuple[PlacedHead, Any]:
    """Puts words in place, with vectors of random numbers."""
    rows = torch.randn(2, model.config.hidden_size, generator=torch.Generator().manual_seed(5))
    form = HeadForm(task, ("one", "two"), mask_token=mask)
    return PlacedHead(model, head_place(model), form, {"word_rows": rows}, UndoLog()), rows


@pytest.mark.parametrize("model_type", [*FIRST_TOKEN, *LAST_TOKEN])
@torch.no_grad()
def test_logits_are_hidden_states_times_vectors(model_type: str) -> None:
    model = head_of(model_type).model(num_labels=2)
    batch = sample(model)
    hidden, before, names = hidden_of(model, batch), model(**batch).logits, list(model.state_dict())
    last = (batch["input_ids"] != PADDING).sum(-1) - 1
    token = hidden[:, 0] if model_type in FIRST_TOKEN else hidden[torch.arange(len(last)), last]
    placed, rows = place(model)
    assert torch.allclose(model(**batch).logits, token @ rows.T, atol=1e-4)
    assert not torch.allclose(before, token @ rows.T, atol=1e-1)
    placed.remove()
    assert torch.equal(model(**batch).logits, before)
    assert list(model.state_dict()) == names
    assert not model.base_model._forward_hooks


@pytest.mark.parametrize("model_type", FIRST_TOKEN)
@torch.no_grad()
def test_the_mask_token_is_scored_where_there_is_one(model_type: str) -> None:
    model = head_of(model_type).model(num_labels=2)
    batch = sample(model)
    batch["input_ids"][batch["input_ids"] == MASK] = 7
    batch["input_ids"][0, 3] = batch["input_ids"][2, 1] = MASK
    hidden = hidden_of(model, batch)
    _, rows = place(model, mask=MASK)
    expected = torch.stack([hidden[0, 3], hidden[1, 0], hidden[2, 1]]) @ rows.T
    assert torch.allclose(model(**batch).logits, expected, atol=1e-4)
    by_position = model(batch["input_ids"], attention_mask=batch["attention_mask"], return_dict=False)[0]
    assert torch.allclose(by_position, expected, atol=1e-4)


@pytest.mark.parametrize("model_type", ANSWERS)
@torch.no_grad()
def test_answers_have_scores_at_every_token(model_type: str) -> None:
    model = head_of(model_type, "ForQuestionAnswering").model()
    batch = sample(model)
    expected = hidden_of(model, batch)
    _, rows = place(model, "answers")
    found = model(**batch)
    assert torch.allclose(found.start_logits, expected @ rows[0], atol=1e-4)
    assert torch.allclose(found.end_logits, expected @ rows[1], atol=1e-4)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta", "deberta-v2"])
def test_gradients_reach_the_layers_and_nothing_drops_out_on_the_way(model_type: str) -> None:
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
    config = head_of(model_type).config()
    model = head_of(model_type).model(num_labels=2, **{name: 0.0 for name in names if hasattr(config, name)})
    batch = sample(model)
    _, rows = place(model)
    logits = model.train()(**batch).logits
    assert torch.equal(logits, model.eval()(**batch).logits)
    matrix = next(value for name, value in model.base_model.named_parameters() if "ayer.1" in name and value.dim() == 2)
    (found,) = torch.autograd.grad(logits.square().sum(), matrix)
    expected = (hidden_of(model, batch)[:, 0] @ rows.T).square().sum()
    assert torch.allclose(found, torch.autograd.grad(expected, matrix)[0], rtol=1e-3, atol=1e-3)


def test_transform_of_a_masked_language_model() -> None:
    torch.manual_seed(0)
    dense, norm = nn.Linear(6, 4), nn.LayerNorm(4, eps=1e-3)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    rows, bias, hidden = torch.randn(3, 4), torch.randn(3), torch.randn(5, 6)
    form = HeadForm("classification", ("a", "b", "c"), "gelu", 1e-3)
    tensors = {"dense_weight": dense.weight, "dense_bias": dense.bias, "norm_weight": norm.weight}
    tensors |= {"norm_bias": norm.bias, "word_rows": rows, "word_bias": bias}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == form.shapes(6, 4)
    expected = norm(ACT2FN["gelu"](dense(hidden))) @ rows.T + bias
    assert torch.allclose(label_word_scores(hidden, form, tensors), expected, atol=1e-6)


def test_nothing_of_the_head_learns() -> None:
    head = LabelWordHead(HeadForm("classification", ("a",)), {"word_rows": torch.ones(1, 4)}, "hidden", stored=False)
    assert not list(head.parameters())
    assert not head.state_dict()


@pytest.mark.parametrize("ending", ["ForTokenClassification", "ForMaskedLM", "Model"])
def test_heads_that_are_not_understood(ending: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no head that label words are known to stand in for"):
        head_place(head_of("bert", ending).model())
    with pytest.raises(UnsupportedModelError, match="T5ForSequenceClassification has no head"):
        head_place(head_of("t5").model())


GOOD: dict[str, Any] = {
    "task": "classification", "words": ["a", "b"], "activation": "gelu", "norm_eps": 1e-12, "mask_token": 4,
}  # fmt: skip


def test_metadata_is_read_as_it_was_written() -> None:
    assert HeadForm.from_dict(GOOD) == HeadForm("classification", ("a", "b"), "gelu", 1e-12, 4)
    assert HeadForm.from_dict(GOOD).to_dict() == GOOD


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "translation"),
        ("words", []),
        ("words", ["a", ""]),
        ("words", "ab"),
        ("activation", "os.system"),
        ("activation", ["gelu"]),
        ("norm_eps", -1.0),
        ("norm_eps", "0"),
        ("mask_token", -1),
        ("mask_token", True),
    ],
)
def test_metadata_is_not_believed(name: str, value: Any) -> None:
    with pytest.raises(PruningError, match=rf"Metadata of label words.*{name}"):
        HeadForm.from_dict(GOOD | {name: value})


@pytest.mark.parametrize("data", [None, [], GOOD | {"more": 1}, {"words": ["a"]}])
def test_metadata_has_all_its_fields_and_no_others(data: Any) -> None:
    with pytest.raises(PruningError, match="Metadata of label words must have activation, mask_token, norm_eps, task"):
        HeadForm.from_dict(data)
