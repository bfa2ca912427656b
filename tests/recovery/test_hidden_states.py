"""Learning from hidden states: the loss by its definition, layer by layer and position by position."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AlbertConfig, AlbertForSequenceClassification, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from hf_prune import describe_model
from hf_prune.recovery import Distillation
from hf_prune.recovery.hidden_states import DeepDistillation, hidden_distance
from tests.small_models import Batch, case, scale_weights

BERT = case("bert", "classification")
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def literal(student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The mean over layers of the relative squared error over all tokens but padding, by transformers' own outputs."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found, wanted = (model(**inputs, output_hidden_states=True).hidden_states[1:] for model in (student, teacher))
    means = []
    for mine, theirs in zip(found, wanted, strict=True):
        above = below = 0.0
        for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            for place in range(length):
                above += float((mine[row, place] - theirs[row, place]).square().sum())
                below += float(theirs[row, place].square().sum())
        means.append(above / below)
    return torch.tensor(means).mean()


def losses(student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, weight: float) -> list[torch.Tensor]:
    """Of one training step, with the hidden states and without them."""
    found = []
    layers = describe_model(student).layers
    hooks = hooks_on(student)
    for deep in (True, False):
        given = student, copy.deepcopy(teacher)
        distillation = (
            DeepDistillation(*given, layers, 2.5, weight=weight) if deep else Distillation(*given, weight=weight)
        )
        student.train()
        found.append(student(**batch).loss)
        student.eval()
        distillation.remove()
    assert hooks_on(student) == hooks
    return found


def hooks_on(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def albert() -> PreTrainedModel:
    """One layer that runs three times."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 12, "num_hidden_layers": 3}
    return AlbertForSequenceClassification(
        AlbertConfig(vocab_size=61, embedding_size=8, num_labels=3, classifier_dropout_prob=0.0, **sizes, **PLAIN)
    ).eval()


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_loss_grows_by_the_distance_of_the_hidden_states(kind: str) -> None:
    student, teacher = (BERT.model(**PLAIN) if kind == "bert" else albert() for _ in range(2))
    scale_weights(teacher, seed=3)
    batch = BERT.batch()
    deep, plain = losses(student, teacher, batch, weight=0.3)
    torch.testing.assert_close(deep - plain, 0.3 * 2.5 * literal(student, teacher, batch), rtol=1e-4, atol=1e-5)
    deep.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.base_model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_a_batch_counts_by_its_share_of_the_labelled_tokens() -> None:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 31, "n_positions": 8}
    sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    torch.manual_seed(0)
    student, teacher = (GPT2LMHeadModel(GPT2Config(**sizes)).eval() for _ in range(2))
    batch = {"input_ids": torch.randint(0, 31, (3, 8))}
    batch |= {"attention_mask": torch.ones_like(batch["input_ids"]), "labels": batch["input_ids"].clone()}
    batch["labels"][0, :4] = -100
    # The last hidden states that transformers shows have passed the last norm, the layers' own have not.
    halves = []
    for items in (None, 36):
        deep, plain = losses(student, teacher, batch | ({} if items is None else {"num_items_in_batch": items}), 1.0)
        halves.append(deep - plain)
    torch.testing.assert_close(halves[1], halves[0] * (7 + 7 + 4) / 36)
    assert halves[0] > 0.1


def test_distance() -> None:
    teacher = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 2.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    student = teacher + torch.tensor([[[0.0, 1.0], [2.0, 0.0]], [[0.0, 0.0], [5.0, 5.0]]])
    assert hidden_distance(student, teacher, mask) == 5 / 30
    assert hidden_distance(torch.zeros_like(teacher), teacher, mask) == 1
    assert hidden_distance(torch.zeros_like(teacher), torch.zeros_like(teacher), mask) == 0
