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
    with PerExampleLoss(EXAMPLES, torch.tensor([2, 3, 4])) as mode:
        total = function(inputs, targets)
    [term] = mode.terms
    assert term.tolist() == pytest.approx([value.item() for value in expected], rel=1e-5)
    assert total.item() == pytest.approx(sum(value.item() for value in expected), rel=1e-5)


def test_values_of_valid_positions_belong_to_their_examples() -> None:
    tokens = torch.tensor([2, 1, 3])
    inputs = torch.randn(6, generator=GENERATOR)
    targets = torch.zeros(6)
    # Six values for three examples: their number alone would say two each.
    with PerExampleLoss(EXAMPLES, tokens) as mode:
        functional.mse_loss(inputs, targets)
    squares = inputs.square()
    expected = [squares[:2].mean(), squares[2:3].mean(), squares[3:].mean()]
    assert mode.terms[0].tolist() == pytest.approx([value.item() for value in expected])


def test_labels_of_an_example_are_not_mistaken_for_valid_positions() -> None:
    # Five labels for each of three examples, and fifteen valid tokens in all.
    with PerExampleLoss(EXAMPLES, torch.tensor([8, 3, 4])) as mode:
        functional.binary_cross_entropy_with_logits(LOGITS, SHARES)
    expected = functional.binary_cross_entropy_with_logits(LOGITS, SHARES, reduction="none").mean(1)
    assert torch.allclose(mode.terms[0], expected)


def test_example_without_any_label_has_no_loss() -> None:
    tags = TAGS.index_fill(0, torch.tensor([1]), -100)
    with PerExampleLoss(EXAMPLES, torch.tensor([2, 3, 4])) as mode:
        total = functional.cross_entropy(SEQUENCES.reshape(-1, CLASSES), tags.reshape(-1))
    assert mode.terms[0][1] == 0
    assert total.isfinite()


def test_other_reductions_and_what_is_outside_stay_as_they_are() -> None:
    expected = functional.cross_entropy(LOGITS, CLASS)
    with PerExampleLoss(EXAMPLES, torch.tensor([2, 3, 4])) as mode:
        total = functional.cross_entropy(LOGITS, CLASS, reduction="sum")
        single = functional.cross_entropy(LOGITS, CLASS, reduction="none")
    assert mode.terms == []
    assert torch.allclose(total, 3 * expected)
    assert single.shape == (3,)
    assert torch.equal(functional.cross_entropy(LOGITS, CLASS), expected)


def test_values_that_cannot_be_told_apart() -> None:
    message = "7 values for a batch of 3 examples"
    with PerExampleLoss(EXAMPLES, torch.tensor([2, 3, 4])), pytest.raises(PruningError, match=message):
        functional.mse_loss(torch.zeros(7), torch.ones(7))
