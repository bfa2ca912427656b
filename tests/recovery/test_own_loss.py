"""The teacher's part of a loss is about the same outputs as the model's own loss, and on its scale."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune.recovery import Distillation, distillation_loss
from hf_prune.recovery.own_loss import counted_outputs, scale_of_loss
from tests.family_models import PADDING, head_named, labels, sample
from tests.small_models import Batch, case

TOLD = [  # one of each kind of loss
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForMaskedLM",
    "BertLMHeadModel",
    "ModernBertForMaskedLM",
    "ElectraForPreTraining",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "BartForCausalLM",
    "BartForConditionalGeneration",
    "T5ForConditionalGeneration",
    "WhisperForConditionalGeneration",
    "Wav2Vec2ForCTC",
    "ViTForImageClassification",
]
SHIFT = 3.0


def labelled(model: PreTrainedModel) -> Batch:
    batch = sample(model)
    found = labels(model, batch)
    if not found:
        ids = batch["input_ids"]
        found = {"labels": (ids % 2) if "PreTraining" in type(model).__name__ else (ids % 2).where(ids > 5, -100)}
    return batch | found


def gradient(model: PreTrainedModel, batch: Batch, teacher: PreTrainedModel | None) -> torch.Tensor:
    """Of the loss, or of the teacher's part alone, by the logits."""
    logits: list[torch.Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: logits.append(output.logits))
    taught = None if teacher is None else Distillation(model, teacher, weight=1.0)
    model.training = True  # and none of its modules, which have dropout
    (found,) = torch.autograd.grad(model(**batch).loss, logits[:1])
    model.training = False
    handle.remove()
    if taught is not None:
        taught.remove()
    return found


@pytest.mark.parametrize("name", TOLD)
def test_the_same_rows_count_and_are_divided_alike(name: str) -> None:
    model, teacher = head_named(name).model(), head_named(name).model(seed=1)
    batch = labelled(model)
    own, part = gradient(model, batch, None), gradient(model, batch, teacher)
    if name == "ElectraForPreTraining":
        own, part = own[..., None], part[..., None]
    assert torch.equal(own.abs().sum(-1) > 1e-9, part.abs().sum(-1) > 1e-9)
    items = {"num_items_in_batch": torch.tensor(1000)}
    if "labels" not in batch or name in ("ElectraForPreTraining", "Wav2Vec2ForCTC"):
        return
    scales = [
        (gradient(model, batch | items, who).norm() / whole.norm()).item()
        for who, whole in ((None, own), (teacher, part))
    ]
    assert scales[1] == pytest.approx(scales[0], rel=1e-3)


def test_a_sum_over_frames_is_a_sum_of_the_teachers_too() -> None:
    model = head_named("Wav2Vec2ForCTC").model()
    assert model.config.ctc_loss_reduction == "sum"
    batch = labelled(model)
    mask = torch.ones_like(batch["input_values"], dtype=torch.long)
    mask[1, 150:] = 0
    with torch.no_grad():
        outputs = model(**batch, attention_mask=mask)
    counted = counted_outputs(model, outputs.logits, {**batch, "attention_mask": mask})
    assert counted is not None
    heard = model._get_feat_extract_output_lengths(mask.sum(-1))
    assert counted.sum(-1).tolist() == heard.tolist()
    assert heard[1] < heard[0]
    assert scale_of_loss(model, {**batch, "attention_mask": mask}, outputs) == heard.sum()
    assert counted_outputs(model, outputs.logits, batch) is None
    assert scale_of_loss(model, batch, outputs) == outputs.logits[..., 0].numel()


@pytest.mark.parametrize("name", ["BartForConditionalGeneration", "T5ForConditionalGeneration"])
def test_a_decoder_reads_what_the_labels_say(name: str) -> None:
    """The model makes its decoder's inputs of the labels, which the teacher does not get."""
    model = head_named(name).model()
    model.config.decoder_start_token_id = 1
    batch = labelled(model)
    del batch["decoder_input_ids"]
    batch["labels"] = batch["labels"][:, :6].contiguous()
    model.training = True
    Distillation(model, copy.deepcopy(model), weight=1.0)
    assert model(**batch).loss.item() == pytest.approx(0, abs=1e-6)


def test_independent_outputs_are_compared_one_by_one() -> None:
    student, teacher = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[1.0, 0.0, -2.0]])
    total = torch.tensor(0.0)
    for mine, theirs in zip(student[0], teacher[0], strict=True):
        p, q = torch.sigmoid(theirs / 2), torch.sigmoid(mine / 2)
        total += 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    torch.testing.assert_close(distillation_loss(student, teacher, 2.0, prediction="labels"), total / 3)
    differences = (0.5**2 + 1 + 4**2) / 3
    assert distillation_loss(student, teacher, 2.0, prediction="numbers") == pytest.approx(differences)


@pytest.mark.parametrize("kind", ["multi_label", "regression", "replaced"])
def test_what_shifts_all_outputs_alike_is_seen(kind: str) -> None:
    """A softmax over the outputs would not."""
    if kind == "replaced":
        teacher = head_named("ElectraForPreTraining").model()
        batch, bias = labelled(teacher), "discriminator_predictions.dense_prediction.bias"
    else:
        item = case("bert", kind)
        teacher = item.model() if kind == "multi_label" else item.model(num_labels=3, problem_type="regression")
        batch, bias = item.batch(), "classifier.bias"
        if kind == "regression":
            batch["labels"] = torch.zeros(len(batch["input_ids"]), 3)
    student = copy.deepcopy(teacher)
    student.get_parameter(bias).data += SHIFT
    student.training = True
    distillation = Distillation(student, teacher, weight=1.0)
    loss = student(**batch).loss.item()
    distillation.remove()
    assert loss == pytest.approx(SHIFT**2) if kind == "regression" else loss > 0.1


def test_padding_does_not_count_without_labels() -> None:
    model = head_named("BertForMaskedLM").model()
    batch = sample(model)
    counted = counted_outputs(model, model(**batch).logits, batch)
    assert counted is not None
    assert torch.equal(counted, batch["input_ids"] != PADDING)


def test_of_masked_words_those_with_a_label_count() -> None:
    model = head_named("BertForPreTraining").model()
    batch = sample(model)
    told = (batch["input_ids"] % 3 == 0).where(batch["input_ids"] != PADDING, torch.tensor(False))
    batch["labels"] = batch["input_ids"].where(told, torch.tensor(-100))
    counted = counted_outputs(model, model(**sample(model)).prediction_logits, batch)
    assert counted is not None
    assert torch.equal(counted, told)
