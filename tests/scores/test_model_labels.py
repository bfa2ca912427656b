"""The Fisher information over the model's own labels, against its definition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_prune import PruningError, describe_model
from hf_prune.calibration import CalibrationData
from hf_prune.scores import (
    collect_gradients,
    iterate_gradients,
    iterate_model_gradients,
    label_direction,
    model_labels,
    with_drawn_labels,
)
from tests.scores.one_at_a_time import ones, scaled, single_examples
from tests.small_models import Batch, Case, case, scale_weights

CLASSES = case("bert", "classification")


def without_labels(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if "label" not in name and "positions" not in name}


def model_gradients(model, batches: list[Batch]) -> list[list[torch.Tensor]]:
    return list(iterate_model_gradients(model, describe_model(model), batches))


def squares(gradients: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Σ over rows and passes, one tensor per block."""
    return [sum(rows.double().square().sum(0) for rows in block) for block in zip(*gradients, strict=True)]


def factor(logits: torch.Tensor, prediction: str, columns: int) -> torch.Tensor:
    """All columns of B, `[examples, outputs, columns]`."""
    directions = [
        label_direction(logits, unit.expand(len(logits), -1), prediction)
        for unit in torch.eye(columns, dtype=logits.dtype)
    ]
    return torch.stack(directions, dim=-1)


class TestFactor:
    @pytest.mark.parametrize("classes", [1, 2, 3, 6])
    @pytest.mark.parametrize("scale", [1.0, 200.0])
    def test_of_classes(self, classes: int, scale: float) -> None:
        logits = scale * torch.randn(5, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        chances = logits.softmax(-1)
        found = factor(logits, "classes", classes - 1) if classes > 1 else torch.zeros(5, 1, 1).double()
        expected = chances.diag_embed() - chances[:, :, None] * chances[:, None]
        assert torch.allclose(found @ found.mT, expected, atol=1e-12)

    def test_of_labels(self) -> None:
        logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        chances = logits.sigmoid()
        found = factor(logits, "labels", 3)
        assert torch.allclose(found @ found.mT, (chances * (1 - chances)).diag_embed())

    def test_of_numbers(self) -> None:
        found = factor(torch.zeros(4, 2), "numbers", 2)
        assert torch.equal(found, torch.eye(2).expand(4, 2, 2))

    def test_many_columns_at_once(self) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(5, 6, generator=generator, dtype=torch.float64)
        signs = 2.0 * torch.randint(2, (5, 5), generator=generator) - 1
        expected = (factor(logits, "classes", 5) * signs[:, None]).sum(-1)
        assert torch.allclose(label_direction(logits, signs.double()), expected)


def log_chances(model, example: Batch, gates: list[torch.Tensor]) -> torch.Tensor:
    with torch.no_grad(), scaled(model, gates):
        return model(**without_labels(example)).logits[0].log_softmax(-1)


def test_expectation_over_classes_by_finite_differences() -> None:
    """Σ_c p_c (∂ log p_c / ∂gate)² summed over examples, every derivative from two forward passes."""
    model, batch = CLASSES.model().double(), CLASSES.batch()
    found = squares(model_gradients(model, [batch]))
    step = 1e-5
    for block, unit in ((0, 1), (1, 7), (4, 3), (5, 20)):
        expected = 0.0
        for example in single_examples(batch):
            sides = []
            for sign in (1, -1):
                gates = [gate.detach() for gate in ones(model)]
                gates[block][unit] += sign * step
                sides.append(log_chances(model, example, gates))
            chances = log_chances(model, example, [gate.detach() for gate in ones(model)]).exp()
            expected += float((chances * ((sides[0] - sides[1]) / (2 * step)).square()).sum())
        assert float(found[block][unit]) == pytest.approx(expected, rel=1e-5)
        assert expected > 1e-6


@pytest.mark.parametrize("task", ["classification", "choices", "next_sentence"])
def test_expectation_over_classes_by_enumerating_labels(task: str) -> None:
    item = case("bert", task)
    model, batch = item.model().double(), item.batch()
    anatomy = describe_model(model)
    with torch.no_grad():
        chances = model(**without_labels(batch)).logits.softmax(-1)
    expected = [torch.zeros(block.units, dtype=torch.float64) for block in anatomy.blocks]
    for label in range(chances.shape[1]):
        [gradients] = iterate_gradients(model, anatomy, [batch | {"labels": torch.full((len(chances),), label)}])
        for total, rows in zip(expected, gradients, strict=True):
            total += (chances[:, label, None] * rows.double().square()).sum(0)
    for one, other in zip(squares(model_gradients(model, [batch])), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4)


def test_expectation_over_independent_labels_by_enumerating_them() -> None:
    item = case("bert", "multi_label")
    model, batch = item.model().double(), item.batch()
    anatomy = describe_model(model)
    with torch.no_grad():
        chances = model(**without_labels(batch)).logits.sigmoid()
    outputs = chances.shape[1]
    expected = [torch.zeros(block.units, dtype=torch.float64) for block in anatomy.blocks]
    for number in range(2**outputs):
        drawn = torch.tensor([(number >> place) & 1 for place in range(outputs)]).double().expand_as(chances)
        [gradients] = iterate_gradients(model, anatomy, [batch | {"labels": drawn}])
        chance = torch.where(drawn == 1, chances, 1 - chances).prod(-1)
        for total, rows in zip(expected, gradients, strict=True):
            # The loss is the mean over labels, their log-likelihood the sum.
            total += (chance[:, None] * (outputs * rows.double()).square()).sum(0)
    for one, other in zip(squares(model_gradients(model, [batch])), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4)


def test_one_number_is_one_pass() -> None:
    item = case("bert", "regression")
    model, batch = item.model().double(), item.batch()
    [found] = model_gradients(model, [batch])
    with torch.no_grad():
        predicted = model(**without_labels(batch)).logits[:, 0]
    # ∂ (p − y)² / ∂gate at y = p − 1/2 is ∂p / ∂gate.
    [expected] = iterate_gradients(model, describe_model(model), [batch | {"labels": predicted - 0.5}])
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_above_the_limit_one_pass_has_the_exact_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = CLASSES.model().double(), CLASSES.batch(lengths=(6,))
    expected = squares(model_gradients(model, [batch]))
    monkeypatch.setattr(model_labels, "EXACT_PASSES", 1)
    anatomy = describe_model(model)
    drawn = {}
    for gradients in iterate_model_gradients(model, anatomy, [batch] * 16):
        found = squares([gradients])
        drawn[round(float(found[0].sum()), 10)] = found
    # Of two signs only their product matters, so there are two outcomes, equally likely.
    assert len(drawn) == 2
    for index, exact in enumerate(expected):
        assert torch.allclose(sum(found[index] for found in drawn.values()) / 2, exact, rtol=1e-4)


@pytest.mark.parametrize("item", [CLASSES, case("bert", "answers"), case("bert", "choices")], ids=str)
def test_labels_in_the_data_are_not_looked_at(item: Case) -> None:
    model, batch = item.model(), item.batch()
    found, expected = model_gradients(model, [batch]), model_gradients(model, [without_labels(batch)])
    assert all(torch.equal(*pair) for pairs in zip(found, expected, strict=True) for pair in zip(*pairs, strict=True))


class TestDrawnLabels:
    def test_follow_the_predictions(self) -> None:
        item = case("bert", "tokens")
        model, batch = item.model(), item.batch(lengths=(3,))
        scale_weights(model.classifier, 1)
        with torch.no_grad():
            model.classifier.weight.mul_(0.2)
            chances = model(**without_labels(batch)).logits.softmax(-1)[0]
        draws = torch.cat([with_drawn_labels(model, batch, seed)["labels"] for seed in range(600)])
        found = torch.stack([(draws == label).double().mean(0) for label in range(chances.shape[-1])], dim=-1)
        assert (found - chances).abs().max() < 0.08  # four standard deviations
        assert chances.max() < 0.95

    def test_the_same_seed_draws_the_same(self) -> None:
        item = case("bert", "masked")
        model, batch = item.model(), item.batch()
        one, other, third = (with_drawn_labels(model, batch, seed)["labels"] for seed in (3, 3, 4))
        assert torch.equal(one, other)
        assert not torch.equal(one, third)

    def test_of_a_causal_model_belong_to_the_next_token(self) -> None:
        item = case("bert", "causal")
        model, batch = item.model().double(), without_labels(item.batch())
        with torch.no_grad():
            for parameter in model.cls.predictions.decoder.parameters():
                parameter.mul_(1e4)
            best = model(**batch).logits.argmax(-1)
        labels = with_drawn_labels(model, batch, 0)["labels"]
        inner = batch["attention_mask"][:, 1:].bool()
        assert torch.equal(labels[:, 1:][inner], best[:, :-1][inner])
        assert (labels[~batch["attention_mask"].bool()] == -100).all()

    def test_stand_where_the_data_has_labels(self) -> None:
        item = case("bert", "masked")
        model, batch = item.model(), item.batch()
        assert torch.equal(with_drawn_labels(model, batch, 0)["labels"] == -100, batch["labels"] == -100)
        everywhere = with_drawn_labels(model, without_labels(batch), 0)["labels"]
        assert torch.equal(everywhere != -100, batch["attention_mask"].bool())

    def test_of_answers_are_two_positions(self) -> None:
        item = case("bert", "answers")
        labelled = with_drawn_labels(item.model(), without_labels(item.batch()), 0)
        assert {"start_positions", "end_positions"} <= labelled.keys()
        assert int(labelled["end_positions"].max()) < labelled["input_ids"].shape[1]

    @pytest.mark.parametrize("task", ["tokens", "masked", "causal", "answers"])
    def test_make_gradients_of_their_own_loss(self, task: str) -> None:
        item = case("bert", task)
        model, batch = item.model(), without_labels(item.batch())
        [found] = model_gradients(model, [batch])
        [expected] = iterate_gradients(model, describe_model(model), [with_drawn_labels(model, batch, 0)])
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


class Centred(BertForSequenceClassification):
    """Its predictions depend on the whole batch."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        logits = self.classifier(self.bert(input_ids, attention_mask=attention_mask).pooler_output)
        return SequenceClassifierOutput(logits=logits - logits.mean(0))


class TestRefusals:
    def test_predictions_that_depend_on_other_examples(self) -> None:
        model = Centred(CLASSES.config()).eval()
        scale_weights(model)
        with pytest.raises(PruningError, match="depends on the others of its batch"):
            model_gradients(model, [CLASSES.batch(lengths=(5,)), CLASSES.batch()])

    @pytest.mark.parametrize("item", [case("bert", "pretraining"), case("electra", "discriminator")], ids=str)
    def test_predictions_of_several_kinds(self, item: Case) -> None:
        with pytest.raises(PruningError, match="labels='data'"):
            model_gradients(item.model(), [item.batch()])

    def test_a_model_without_a_head(self) -> None:
        item = case("bert", "bare")
        with pytest.raises(PruningError, match="labels cannot be drawn"):
            model_gradients(item.model(), [item.batch()])

    def test_outputs_that_are_not_finite(self) -> None:
        model = CLASSES.model()
        with torch.no_grad():
            model.classifier.bias[0] = torch.nan
        with pytest.raises(PruningError, match="not finite"):
            model_gradients(model, [CLASSES.batch()])


@pytest.mark.parametrize("item", [CLASSES, case("bert", "tokens"), case("bert", "answers")], ids=str)
def test_processes_draw_for_their_batches_what_one_process_draws(item: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_labels, "EXACT_PASSES", 1)
    model, batches = item.model(), [item.batch()] * 5  # all alike, so that only what is drawn tells them apart
    anatomy = describe_model(model)

    def sums(processes: int, rank: int) -> dict[str, torch.Tensor]:
        accelerator: Any = SimpleNamespace(num_processes=processes, process_index=rank)
        data = CalibrationData(batches, model, accelerator=accelerator)
        rows = collect_gradients(model, anatomy, data, labels="model")
        return {key: row.square_sum for key, row in rows.items()}

    alone, first, second = sums(1, 0), sums(2, 0), sums(2, 1)
    for key, expected in alone.items():
        assert torch.allclose(first[key] + second[key], expected, rtol=1e-6), key
        assert not torch.allclose(first[key] / 3, second[key] / 2, rtol=1e-3), key


def test_no_batches_no_gradients() -> None:
    assert model_gradients(CLASSES.model(), []) == []
