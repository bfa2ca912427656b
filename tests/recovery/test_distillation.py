from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from hf_prune import PruningError
from hf_prune.recovery import Distillation, distillation_loss
from tests.small_models import Batch, case

CLASSIFIER = case("bert", "classification")


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Σ p log(p / q) of one row, by its definition."""
    p, q = (torch.softmax(row / temperature, -1) for row in (teacher, student))
    return temperature**2 * (p * (p / q).log()).sum()


def test_loss_is_the_divergence_of_every_row() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, 5, generator=generator) for _ in range(2))
    mask = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
    rows = [divergence(student[place], teacher[place], 2.5) for place in map(tuple, mask.nonzero().tolist())]
    torch.testing.assert_close(distillation_loss(student, teacher, 2.5, mask), torch.stack(rows).sum())
    assert distillation_loss(teacher, teacher, 2.5) == pytest.approx(0, abs=1e-6)


def test_one_value_is_a_regression() -> None:
    student, teacher = torch.tensor([[1.0], [4.0]]), torch.tensor([[3.0], [3.0]])
    assert distillation_loss(student, teacher, 2.0, prediction="numbers") == 5


def trained(
    student: torch.nn.Module, teacher: torch.nn.Module, batch: Batch, weight: float = 0.3, labelled: bool = True
) -> torch.Tensor:
    """The loss of one training step's forward pass."""
    distillation = Distillation(student, copy.deepcopy(teacher), temperature=2.0, weight=weight, labelled=labelled)
    student.train()
    loss: torch.Tensor = student(**batch).loss
    student.eval()
    distillation.remove()
    return loss


def test_loss_of_a_classifier_is_mixed_and_only_while_it_is_trained() -> None:
    student, teacher = CLASSIFIER.model(hidden_dropout_prob=0, attention_probs_dropout_prob=0), CLASSIFIER.model(seed=1)
    batch = CLASSIFIER.batch()
    with torch.no_grad():
        own, found, wanted = student(**batch).loss, student(**batch).logits, teacher(**batch).logits
    part = torch.stack([divergence(*pair, 2.0) for pair in zip(found, wanted, strict=True)]).mean()
    loss = trained(student, teacher, batch)
    torch.testing.assert_close(loss, 0.7 * own + 0.3 * part)
    loss.backward()
    assert student.classifier.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    student.train()
    torch.testing.assert_close(student(**batch).loss, own)  # the hook is gone
    student.eval()
    Distillation(student, teacher)
    torch.testing.assert_close(student(**batch).loss, own)  # evaluation is not distilled


def test_the_teacher_is_as_it_was_afterwards() -> None:
    student, teacher = CLASSIFIER.model(), CLASSIFIER.model(seed=1).train()
    teacher.classifier.requires_grad_(False)
    distillation = Distillation(student, teacher)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    distillation.remove()
    assert teacher.training
    frozen = {name for name, parameter in teacher.named_parameters() if not parameter.requires_grad}
    assert frozen == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("items", [None, 40])
def test_loss_of_a_language_model_counts_labelled_tokens(items: int | None) -> None:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 31, "n_positions": 8}
    sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    torch.manual_seed(0)
    student, teacher = GPT2LMHeadModel(GPT2Config(**sizes)), GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    ids = torch.randint(0, 31, (3, 8))
    labels = ids.masked_fill(torch.rand(3, 8) < 0.3, -100)
    batch = {"input_ids": ids, "labels": labels} | ({} if items is None else {"num_items_in_batch": items})
    with torch.no_grad():
        found, wanted = student(input_ids=ids).logits, teacher(input_ids=ids).logits
    rows = [
        divergence(found[row, place], wanted[row, place], 2.0)
        for row in range(3)
        for place in range(7)
        if labels[row, place + 1] != -100
    ]
    part = torch.stack(rows).sum() / (len(rows) if items is None else items)
    torch.testing.assert_close(trained(student, teacher, batch, weight=1.0), part)


@pytest.mark.parametrize("kind", ["causal", "tokens"])
def test_without_labels_every_token_counts_that_is_no_padding(kind: str) -> None:
    words = case("bert", kind)
    student, teacher = words.model(hidden_dropout_prob=0, attention_probs_dropout_prob=0), words.model(seed=1)
    batch = words.batch(lengths=(4, 9, 6))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found, wanted = student(**inputs).logits, teacher(**inputs).logits
    last = 1 if kind == "causal" else 0  # nothing follows the last token
    rows = [
        divergence(found[row, place], wanted[row, place], 2.0)
        for row, length in enumerate((4, 9, 6))
        for place in range(length - last)
    ]
    torch.testing.assert_close(trained(student, teacher, inputs, 1.0, labelled=False), torch.stack(rows).mean())


def test_question_answering_is_the_mean_of_start_and_end() -> None:
    answers = case("bert", "answers")
    student, teacher = answers.model(hidden_dropout_prob=0, attention_probs_dropout_prob=0), answers.model(seed=1)
    batch = answers.batch()
    with torch.no_grad():
        found, wanted = student(**batch), teacher(**batch)
    parts = [
        torch.stack([divergence(*pair, 2.0) for pair in zip(found[name], wanted[name], strict=True)]).mean()
        for name in ("start_logits", "end_logits")
    ]
    torch.testing.assert_close(trained(student, teacher, batch, weight=1.0), torch.stack(parts).mean())


def test_what_does_not_fit_is_refused() -> None:
    student, batch = CLASSIFIER.model(), CLASSIFIER.batch()
    with pytest.raises(PruningError, match=r"temperature=0"):
        Distillation(student, CLASSIFIER.model(), temperature=0)
    with pytest.raises(PruningError, match=r"weight=1\.5"):
        Distillation(student, CLASSIFIER.model(), weight=1.5)
    distillation = Distillation(student.train(), CLASSIFIER.model(num_labels=5))
    with pytest.raises(PruningError, match="same classes"):
        student(**batch)
    distillation.remove()
    unlabelled = {name: value for name, value in batch.items() if name != "labels"}
    # Without a loss of its own a weight of 1 is not enough: a trainer may have taken the labels for its own loss.
    for settings in ({"weight": 1.0}, {"weight": 0.5, "labelled": False}):
        distillation = Distillation(student, CLASSIFIER.model(), **settings)  # type: ignore[arg-type]
        with pytest.raises(PruningError, match="no loss of its own"):
            student(**unlabelled)
        distillation.remove()
    assert F.cross_entropy(student(**unlabelled).logits, batch["labels"]) > 0
