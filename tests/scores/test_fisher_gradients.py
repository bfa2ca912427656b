"""One backward pass per batch gives what one example at a time gives, for every task head's own loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import BertForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_prune import FisherPruningConfig, PruningError, describe_model, prune_model
from hf_prune.calibration import CalibrationData
from hf_prune.scores import (
    GradientRows,
    collect_gradients,
    fisher_gradients,
    iterate_gradients,
    iterate_model_gradients,
)
from hf_prune.scores.per_example_loss import PerExampleLoss
from tests.scores.one_at_a_time import gradients_one_at_a_time, ones, scaled, single_examples
from tests.small_models import CASES, Batch, Case, case, scale_weights
from tests.witness import Witness

WITH_LOSS = [item for item in CASES if item.task != "bare"]
BERT = case("bert", "classification")


def double(batch: Batch) -> Batch:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def in_order(model: PreTrainedModel, gradients: dict[str, list[torch.Tensor]]) -> list[torch.Tensor]:
    """The gradients in the order of the model's blocks."""
    kinds = {"attention": iter(gradients["heads"]), "feed_forward": iter(gradients["filters"])}
    return [next(kinds[block.kind]) for block in describe_model(model).blocks]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == torch.float32
        scale = other.abs().max()
        assert scale > 1e-4
        assert (one - other).abs().max() <= tolerance * scale


@pytest.mark.parametrize("item", WITH_LOSS, ids=str)
def test_equal_to_one_example_at_a_time(item: Case) -> None:
    model, batch = item.model().double(), double(item.batch())
    found = in_order(model, fisher_gradients(model, [batch]))
    assert_same(found, gradients_one_at_a_time(model, batch))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("item", [BERT, case("distilbert", "tokens"), case("roberta", "causal")], ids=str)
def test_equal_in_single_precision(item: Case, attention: str) -> None:
    model, batch = item.model(attention), item.batch()
    found = in_order(model, fisher_gradients(model, [batch]))
    assert_same(found, gradients_one_at_a_time(model, batch))


@pytest.mark.parametrize("lengths", [(5, 3, 4, 4), (6, 2), (1, 7), (4, 4, 4)])
def test_losses_on_valid_positions_only_find_their_example(lengths: tuple[int, ...]) -> None:
    """Electra's discriminator sees one flat list of valid positions, whose length may be a multiple of the batch."""
    item = case("electra", "discriminator")
    model, batch = item.model().double(), item.batch(lengths=lengths)
    assert_same(in_order(model, fisher_gradients(model, [batch])), gradients_one_at_a_time(model, batch))


def test_batches_of_different_shapes_are_stacked() -> None:
    item = case("bert", "masked")
    model = item.model().double()
    batches = [item.batch(seed=1, lengths=(6, 4)), item.batch(seed=2, lengths=(9, 7, 8)), item.batch(seed=3)]
    expected = [gradients_one_at_a_time(model, batch) for batch in batches]
    found = in_order(model, fisher_gradients(model, batches))
    assert_same(found, [torch.cat(parts) for parts in zip(*expected, strict=True)])


@pytest.mark.parametrize("task", ["masked", "tokens", "answers", "pretraining"])
def test_examples_without_labels_of_a_term_contribute_nothing_to_it(task: str) -> None:
    item = case("bert", task)
    model, batch = item.model().double(), item.batch()
    for name in ("start_positions", "end_positions") if task == "answers" else ("labels",):
        batch[name][1] = batch["input_ids"].shape[1] + 1 if task == "answers" else -100
    found = in_order(model, fisher_gradients(model, [batch]))
    others = [0, 2, 3]
    rest = {name: value[others] for name, value in batch.items()}
    assert_same([rows[others] for rows in found], gradients_one_at_a_time(model, rest))
    if task != "pretraining":
        assert all(not rows[1].any() for rows in found)
    else:
        assert all(rows[1].any() for rows in found)


def test_equal_to_finite_differences() -> None:
    item = case("bert", "tokens")
    model, batch = item.model().double(), item.batch()
    found = in_order(model, fisher_gradients(model, [batch]))
    example, step = single_examples(batch)[2], 1e-6
    for block, unit in ((0, 2), (1, 7), (4, 0), (5, 39)):
        losses = []
        for sign in (1, -1):
            gates = [gate.detach() for gate in ones(model)]
            gates[block][unit] += sign * step
            with torch.no_grad(), scaled(model, gates):
                losses.append(model(**example).loss.item())
        assert found[block][2, unit].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4, abs=1e-7)


def test_pruned_models_have_gradients_too() -> None:
    from tests.conformance.plans import prune

    model, batch = BERT.model(), BERT.batch()
    prune(model, batch)
    gradients = fisher_gradients(model, [batch])
    assert [tuple(rows.shape) for rows in gradients["heads"]] == [(4, 2), (4, 0), (4, 4)]
    assert [tuple(rows.shape) for rows in gradients["filters"]] == [(4, 20), (4, 40), (4, 0)]


@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(training: bool) -> None:
    model = BERT.model().train(training)
    model.bert.encoder.layer[0].eval()
    model.classifier.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    no_labels = {"input_ids": torch.full((2, 3), 7)}

    fisher_gradients(model, [BERT.batch()])
    with pytest.raises(PruningError):
        fisher_gradients(model, [BERT.batch(), no_labels])
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_gates_get_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BERT.model().train()
    seen = []
    model.classifier.register_forward_hook(
        lambda module, args, output: seen.append((module.training, module.weight.requires_grad, output.requires_grad))
    )
    list(iterate_gradients(model, describe_model(model), [BERT.batch()]))
    assert set(seen) <= {(False, False, True), (False, False, False)}
    assert (False, False, True) in seen


class Coupled(BertForSequenceClassification):
    """The losses that a strategy cannot split, chosen by `kind`."""

    kind = ""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        pooled = self.bert(input_ids, attention_mask=attention_mask).pooler_output
        logits = self.classifier(pooled)
        average = torch.nn.functional.cross_entropy
        losses = {
            "contrastive": lambda: average(pooled @ pooled.T, torch.arange(len(pooled))),
            "centred": lambda: average(logits - logits.mean(0), labels),
            "unknown": lambda: (logits.logsumexp(1) - logits[:, 0]).mean(),
            "regularised": lambda: average(logits, labels) + logits.square().mean(),
            "weighted": lambda: average(logits, labels) * len(labels),
        }
        return SequenceClassifierOutput(loss=losses[self.kind](), logits=logits)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("contrastive", "couples the examples of a batch"),
        ("centred", "couples the examples of a batch"),
        ("unknown", "none of the known averaging losses"),
        ("regularised", "has a part of its own besides the average over examples"),
        ("weighted", "is not the sum of what the model gives for each example alone"),
    ],
)
def test_losses_that_have_no_per_example_gradient_are_refused(kind: str, message: str) -> None:
    model = Coupled(BERT.config()).eval()
    scale_weights(model)
    model.kind = kind
    with pytest.raises(PruningError, match=message):
        fisher_gradients(model, [BERT.batch()])
    # A first batch of one example must not hide it.
    with pytest.raises(PruningError, match=message):
        fisher_gradients(model, [BERT.batch(lengths=(5,)), BERT.batch()])


def test_any_loss_will_do_one_example_at_a_time() -> None:
    model = Coupled(BERT.config()).eval()
    scale_weights(model)
    model.kind = "regularised"
    found = in_order(model, fisher_gradients(model, single_examples(BERT.batch())))
    assert_same(found, gradients_one_at_a_time(model, BERT.batch()))


@pytest.mark.parametrize("batches", [1, 2])
def test_loss_that_is_not_finite(batches: int) -> None:
    model = case("bert", "regression").model()
    batch = case("bert", "regression").batch()
    broken = batch | {"labels": torch.tensor([0.1, torch.nan, 0.2, 0.3])}
    with pytest.raises(PruningError, match=rf"loss on calibration batch {batches - 1} is nan"):
        fisher_gradients(model, [batch] * (batches - 1) + [broken])


def break_gradients(model: PreTrainedModel, length: int) -> None:
    """Makes the gradients of batches of this length NaN, and leaves what is computed forward as it is."""

    def add_nothing(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + (0 * output).sqrt() if output.shape[1] == length else output

    model.base_model.encoder.layer[0].output.dense.register_forward_hook(add_nothing)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("gradients", [iterate_gradients, iterate_model_gradients])
def test_gradients_of_a_finite_loss_that_are_not_finite(gradients: Any, batches: int) -> None:
    model = BERT.model()
    break_gradients(model, 12)
    data = [BERT.batch()] * (batches - 1) + [BERT.batch(lengths=(12, 4))]
    with pytest.raises(PruningError, match=rf"calibration batch {batches - 1} is finite, but its gradients are not"):
        list(gradients(model, describe_model(model), data))


def test_default_scores_of_gradients_that_are_not_finite() -> None:
    model = BERT.model()
    break_gradients(model, 12)
    witness = Witness(model)
    with pytest.raises(PruningError, match="batch 1 is finite, but its gradients are not"):
        prune_model(model, FisherPruningConfig(flops=0.5), [BERT.batch(), BERT.batch(lengths=(12, 4))])
    witness.check()


def test_a_model_is_not_left_frozen_while_somebody_looks_at_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BERT.model().train()
    monkeypatch.setattr(GradientRows, "add", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:  # whose traceback holds what was going on
        collect_gradients(model, describe_model(model), CalibrationData([BERT.batch()], model))
    assert caught.tb is not None
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_tokens_are_counted_in_half_precision(dtype: torch.dtype) -> None:
    count = 5000
    logits = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.randint(3, (2, count), generator=torch.Generator().manual_seed(1))
    with PerExampleLoss(2, labels) as mode:
        cross_entropy(logits.flatten(0, 1), labels.flatten())
    for index in range(2):
        expected = cross_entropy(logits[index].float(), labels[index])
        assert mode.terms[0][index].item() == pytest.approx(expected.item(), rel=0.01)


def test_labels_missing() -> None:
    batch = BERT.batch()
    del batch["labels"]
    with pytest.raises(PruningError, match=r"returned no loss .*labels are missing.*importance='magnitude'"):
        fisher_gradients(BERT.model(), [batch])


def test_bare_model_has_no_loss() -> None:
    item = case("bert", "bare")
    with pytest.raises(PruningError, match="BertModel returned no loss"):
        fisher_gradients(item.model(), [item.batch()])
