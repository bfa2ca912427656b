from __future__ import annotations

import math

import pytest
import torch

from hf_prune import PruningError
from hf_prune.scores import smallest_mean, unused

NAN = math.nan
MEANS = [torch.tensor([3.0, 1.0, 7.0]), torch.tensor([2.0]), torch.tensor([5.0, NAN])]
MASKS = [torch.tensor([True, False, True]), torch.tensor([True]), torch.tensor([True, True])]


@pytest.mark.parametrize(("k", "expected"), [(1, 1.0), (2, 2.0), (3, 3.0), (4, 5.0), (5, 7.0)])
def test_the_kth_smallest_of_all_blocks(k: int, expected: float) -> None:
    assert smallest_mean(MEANS, k) == expected


@pytest.mark.parametrize(("k", "expected"), [(1, 2.0), (2, 3.0), (4, 7.0)])
def test_the_kth_smallest_of_what_is_left(k: int, expected: float) -> None:
    assert smallest_mean(MEANS, k, MASKS) == expected


def test_equal_means_count_each() -> None:
    assert smallest_mean([torch.tensor([2.0, 2.0, 3.0])], 2) == 2.0
    assert smallest_mean([torch.tensor([2.0, 2.0, 3.0])], 3) == 3.0


@pytest.mark.parametrize("k", [0, -1, 5])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(PruningError, match=rf"k={k} .* 4 mappings are left and measured; k must be from 1 to 4"):
        smallest_mean(MEANS, k, MASKS)


def test_nothing_left() -> None:
    with pytest.raises(PruningError, match="no mapping is left that was measured"):
        smallest_mean(MEANS, 1, [torch.zeros_like(mask) for mask in MASKS])
    with pytest.raises(PruningError, match="no mapping is left"):
        smallest_mean([], 1)


USAGE = [torch.tensor([0.0, 0.5, 0.95]), torch.tensor([1.0]), torch.tensor([0.94, NAN])]


@pytest.mark.parametrize(
    ("theta", "rule", "expected"),
    [
        (0.95, "open_rate", [[True, True, False], [False], [True, False]]),
        (0.5, "open_rate", [[True, False, False], [False], [False, False]]),
        (1.0, "open_rate", [[True, True, True], [False], [True, False]]),
        (0.95, "always_closed", [[True, False, False], [False], [False, False]]),
    ],
)
def test_what_is_below_theta(theta: float, rule: str, expected: list[list[bool]]) -> None:
    assert [mask.tolist() for mask in unused(USAGE, theta, rule=rule)] == expected
    left = [torch.tensor([False, True, True]), torch.tensor([True]), torch.tensor([True, True])]
    among_left = [mask.tolist() for mask in unused(USAGE, theta, left, rule)]
    assert among_left == [[False, *expected[0][1:]], *expected[1:]]


@pytest.mark.parametrize("theta", [0.0, -0.1, 1.01, NAN])
def test_theta_out_of_range(theta: float) -> None:
    with pytest.raises(PruningError, match="must be above 0 and at most 1"):
        unused(USAGE, theta)


def test_rules_and_masks_that_do_not_fit() -> None:
    with pytest.raises(PruningError, match="rule='closed' is unknown"):
        unused(USAGE, 0.5, rule="closed")
    with pytest.raises(PruningError, match=r"Masks of shapes \[\(3,\), \(1,\)\] do not fit"):
        unused(USAGE, 0.5, MASKS[:2])
    with pytest.raises(PruningError, match="do not fit"):
        smallest_mean(MEANS, 1, [MASKS[0][:2], *MASKS[1:]])
