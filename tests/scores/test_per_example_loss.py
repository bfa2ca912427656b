"""Averaging losses, split by example, against the loss of each example alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.nn import functional

from hf_prune import PruningError
from hf_prune.scores.per_example_loss import PerExampleLoss

EXAMPLES, LENGTH, CLASSES = 3, 4, 5
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(EXAMPLES, CLASSES, generator=GENERATOR)
SEQUENCES = torch.randn(EXAMPLES, LENGTH, CLASSES, generator=GENERATOR)
CLASS = torch.tensor([0, 4, 2])
TAGS = torch.tensor([[0, 1, -100, -100], [2, 2, 4, -100], [3, 0, 1, 2]])
WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.5, 2.0])
VALUES = torch.randn(EXAMPLES, generator=GENERATOR)
SHARES = torch.rand(EXAMPLES, CLASSES, generator=GENERATOR)

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def flat(function: Loss) -> Loss:
    """As token heads call it: positions of all examples in one list."""
    return lambda logits, tags: function(logits.reshape(-1, CLASSES), tags.reshape(-1))


CASES: dict[str, tuple[Loss, torch.Tensor, torch.Tensor]] = {
    "classes": (functional.cross_entropy, LOGITS, CLASS),
    "weighted classes": (partial(functional.cross_entropy, weight=WEIGHTS), LOGITS, CLASS),
    "ignored class": (partial(functional.cross_entropy, ignore_index=4), LOGITS, CLASS.clamp(max=3)),
    "smoothed labels": (partial(functional.cross_entropy, label_smoothing=0.1), LOGITS, CLASS),
    "class probabilities": (functional.cross_entropy, LOGITS, SHARES),
    "tokens": (flat(functional.cross_entropy), SEQUENCES, TAGS),
    "weighted tokens": (flat(partial(functional.cross_entropy, weight=WEIGHTS)), SEQUENCES, TAGS),
    "tokens, classes second": (lambda x, y: functional.cross_entropy(x.transpose(1, 2), y), SEQUENCES, TAGS),
    "weights and an ignored index beyond the classes": (
        flat(partial(functional.cross_entropy, weight=WEIGHTS, ignore_index=CLASSES)),
        SEQUENCES,
        TAGS.where(TAGS >= 0, CLASSES),
    ),
    "log probabilities": (lambda x, y: functional.nll_loss(x.log_softmax(1), y, weight=WEIGHTS), LOGITS, CLASS),
    "regression": (functional.mse_loss, VALUES, VALUES.flip(0)),
    "several values": (functional.mse_loss, LOGITS, SHARES),
    "absolute error": (functional.l1_loss, LOGITS, SHARES),
    "smooth absolute error": (functional.smooth_l1_loss, LOGITS, SHARES),
    "Huber": (functional.huber_loss, LOGITS, SHARES),
    "several labels": (functional.binary_cross_entropy_with_logits, LOGITS, SHARES.round()),
    "weighted labels": (
        partial(functional.binary_cross_entropy_with_logits, pos_weight=WEIGHTS),
        LOGITS,
        SHARES.round(),
    ),
    "probabilities": (lambda x, y: functional.binary_cross_entropy(x.sigmoid(), y), LOGITS, SHARES.round()),
    "a loss module": (torch.nn.CrossEntropyLoss(), LOGITS, CLASS),
}


@pytest.mark.parametrize("name", CASES)
def test_terms_are_each_examples_own_loss(name: str) -> None:
    function, inputs, targets = CASES[name]
    expected = [function(inputs[index : index + 1], targets[index : index + 1]) for index in range(EXAMPLES)]
    with PerExampleLoss(EXAMPLES) as mode:
        total = function(inputs, targets)
    [term] = mode.terms
    assert term.tolist() == pytest.approx([value.item() for value in expected], rel=1e-5)
    assert total.item() == pytest.approx(sum(value.item() for value in expected), rel=1e-5)


# How heads choose positions for their loss → the positions whose logits count, and the labels they are compared with.
CHOICES_OF_POSITIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]
CHOICES_OF_POSITIONS = {
    "all": lambda logits, labels, valid: (logits.flatten(0, 1), labels.flatten()),
    "shifted": lambda logits, labels, valid: (logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()),
    "shifted and padded": lambda logits, labels, valid: (
        logits.flatten(0, 1),
        functional.pad(labels[:, 1:], (0, 1), value=-100).flatten(),
    ),
    "valid": lambda logits, labels, valid: (logits[valid], labels[valid]),
    "labelled": lambda logits, labels, valid: (logits[labels != -100], labels[labels != -100]),
    "labelled and shifted": lambda logits, labels, valid: (
        logits[:, :-1][labels[:, 1:] != -100],
        labels[:, 1:][labels[:, 1:] != -100],
    ),
    "valid and shifted": lambda logits, labels, valid: (logits[:, :-1][valid[:, 1:]], labels[:, 1:][valid[:, 1:]]),
}


@pytest.mark.parametrize("name", CHOICES_OF_POSITIONS)
@pytest.mark.parametrize("lengths", [(3, 1, 5), (4, 2, 6), (2, 2, 5), (5, 5, 5)])
def test_labels_tell_whose_a_value_is(name: str, lengths: tuple[int, ...]) -> None:
    valid = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    labels = torch.randint(CLASSES, valid.shape, generator=torch.Generator().manual_seed(5))
    if name.startswith("labelled"):
        labels[0, 1] = labels[2, 0] = -100
    logits = torch.randn(*valid.shape, CLASSES, generator=torch.Generator().manual_seed(6))
    choose = CHOICES_OF_POSITIONS[name]
    with PerExampleLoss(EXAMPLES, labels, valid) as mode:
        functional.cross_entropy(*choose(logits, labels, valid))
    for index in range(EXAMPLES):
        rows = slice(index, index + 1)
        chosen = choose(logits[rows], labels[rows], valid[rows])
        expected = functional.cross_entropy(*chosen) if len(chosen[1]) else torch.zeros(())
        assert mode.terms[0][index].item() == pytest.approx(expected.item(), rel=1e-5)


def test_valid_positions_count_where_there_are_no_labels_to_compare_with() -> None:
    valid = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()
    inputs = torch.randn(7, generator=GENERATOR)
    with PerExampleLoss(EXAMPLES, valid=valid) as mode:
        functional.mse_loss(inputs, torch.zeros(7))
    squares = inputs.square()
    expected = [squares[:3].mean(), squares[3:4].mean(), squares[4:].mean()]
    assert mode.terms[0].tolist() == pytest.approx([value.item() for value in expected])


def test_values_that_may_be_split_in_two_ways() -> None:
    # Six values for three examples: two each, or one for every valid position?
    valid = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    message = "6 values for a batch of 3 examples"
    with PerExampleLoss(EXAMPLES, valid=valid), pytest.raises(PruningError, match=message):
        functional.mse_loss(torch.zeros(6), torch.ones(6))


def test_labels_of_an_example_are_not_mistaken_for_valid_positions() -> None:
    # Five labels for each of three examples, and fifteen valid tokens in all.
    valid = torch.arange(8)[None] < torch.tensor([8, 3, 4])[:, None]
    with PerExampleLoss(EXAMPLES, SHARES, valid) as mode:
        functional.binary_cross_entropy_with_logits(LOGITS, SHARES)
    expected = functional.binary_cross_entropy_with_logits(LOGITS, SHARES, reduction="none").mean(1)
    assert torch.allclose(mode.terms[0], expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_alignment_losses(reduction: str) -> None:
    log_probabilities = torch.randn(7, EXAMPLES, CLASSES, generator=GENERATOR).log_softmax(2)
    targets, frames, lengths = torch.tensor([1, 2, 3, 4, 1, 2]), torch.tensor([7, 5, 6]), torch.tensor([3, 0, 3])

    def loss(index: int) -> torch.Tensor:
        own = targets[lengths[:index].sum() : lengths[: index + 1].sum()]
        rows = slice(index, index + 1)
        return functional.ctc_loss(
            log_probabilities[:, rows], own, frames[rows], lengths[rows], reduction=reduction, zero_infinity=True
        )

    with PerExampleLoss(EXAMPLES) as mode:
        total = functional.ctc_loss(
            log_probabilities, targets, frames, lengths, reduction=reduction, zero_infinity=True
        )
    expected = [loss(index).item() for index in range(EXAMPLES)]
    assert mode.terms[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert total.item() == pytest.approx(sum(expected), rel=1e-5)


def test_example_without_any_label_has_no_loss() -> None:
    tags = TAGS.index_fill(0, torch.tensor([1]), -100)
    with PerExampleLoss(EXAMPLES) as mode:
        total = functional.cross_entropy(SEQUENCES.reshape(-1, CLASSES), tags.reshape(-1))
    assert mode.terms[0][1] == 0
    assert total.isfinite()


def test_other_reductions_and_what_is_outside_stay_as_they_are() -> None:
    expected = functional.cross_entropy(LOGITS, CLASS)
    with PerExampleLoss(EXAMPLES) as mode:
        total = functional.cross_entropy(LOGITS, CLASS, reduction="sum")
        single = functional.cross_entropy(LOGITS, CLASS, reduction="none")
    assert mode.terms == []
    assert torch.allclose(total, 3 * expected)
    assert single.shape == (3,)
    assert torch.equal(functional.cross_entropy(LOGITS, CLASS), expected)


def test_a_choice_of_tokens_that_labels_do_not_explain() -> None:
    labels = torch.randint(CLASSES, (EXAMPLES, 6), generator=torch.Generator().manual_seed(5))
    every_other = labels[:, ::2].flatten()  # six times three values are no whole rows
    with PerExampleLoss(EXAMPLES, labels), pytest.raises(PruningError, match="9 values for a batch of 3 examples"):
        functional.cross_entropy(torch.zeros(9, CLASSES), every_other)


def test_values_that_cannot_be_told_apart() -> None:
    message = "7 values for a batch of 3 examples"
    with PerExampleLoss(EXAMPLES), pytest.raises(PruningError, match=message):
        functional.mse_loss(torch.zeros(7), torch.ones(7))
