"""Ladders: which counts a block may keep, and which units those are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_prune.budget.grouping import build_ladders, ladder_masks, score_blocks
from hf_prune.errors import PruningError


@pytest.mark.parametrize(
    ("size", "multiple", "widths"),
    [
        (6, 1, (0, 1, 2, 3, 4, 5, 6)),
        (8, 4, (0, 4, 8)),
        (10, 4, (0, 4, 8, 10)),
        (3, 8, (0, 3)),
        (0, 4, (0,)),
    ],
)
def test_widths_are_multiples_or_the_whole_block(size: int, multiple: int, widths: tuple[int, ...]) -> None:
    (ladder,) = build_ladders([torch.rand(size)], "filter", multiple=multiple)
    assert ladder.widths == widths
    assert len(ladder.gains) == len(widths) - 1


def test_a_rung_gains_the_scores_of_the_units_it_adds() -> None:
    scores = torch.tensor([1.0, 9.0, 4.0, 4.0, 7.0])
    (ladder,) = build_ladders([scores], "head", multiple=2)
    assert ladder.gains.tolist() == [16.0, 8.0, 1.0]
    (mask,) = ladder_masks([ladder], [2], [scores])
    assert mask.tolist() == [False, True, True, True, True]


def test_equal_scores_keep_the_lower_index() -> None:
    scores = torch.full((40,), 0.3)
    (ladder,) = build_ladders([scores], "filter")
    (mask,) = ladder_masks([ladder], [7], [scores])
    assert mask.nonzero().flatten().tolist() == list(range(7))


def test_uniform_is_one_ladder_with_the_gains_of_all_blocks_added_up() -> None:
    blocks = [torch.tensor([1.0, 5.0, 3.0]), torch.tensor([20.0, 40.0, 30.0])]
    (ladder,) = build_ladders(blocks, "head", uniform=True, minimum=[0, 2])
    assert ladder.gains.tolist() == [45.0, 33.0, 21.0]
    assert ladder.floor == 2
    masks = ladder_masks([ladder], [1], blocks)
    assert [mask.tolist() for mask in masks] == [[False, True, False], [False, True, False]]


def test_minimum_is_rounded_up_to_an_allowed_count() -> None:
    ladders = build_ladders([torch.rand(10)] * 4, "head", multiple=4, minimum=[0, 1, 5, 9])
    assert [ladder.widths[ladder.floor] for ladder in ladders] == [0, 4, 8, 10]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_of_a_matrix_are_blocks_in_any_dtype(dtype: torch.dtype) -> None:
    matrix = torch.tensor([[1, 2, 3], [6, 5, 4]], dtype=dtype)
    ladders = build_ladders(score_blocks(matrix, "head"), "head")
    assert [ladder.gains.tolist() for ladder in ladders] == [[3, 2, 1], [6, 5, 4]]
    assert all(ladder.gains.dtype == np.float64 for ladder in ladders)


def test_scores_that_require_gradients_are_only_read() -> None:
    scores = torch.rand(4, requires_grad=True)
    (mask,) = ladder_masks(build_ladders(score_blocks([scores], "head"), "head"), [2], [scores])
    assert mask.dtype == torch.bool
    assert not mask.requires_grad
    assert int(mask.sum()) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_invalid_scores_name_their_block(value: float) -> None:
    with pytest.raises(PruningError, match="filter scores of block 1"):
        score_blocks([torch.ones(3), torch.tensor([1.0, value])], "filter")


@pytest.mark.parametrize("scores", [torch.rand(3), torch.rand(2, 3, 4), [torch.rand(2, 2)], [[1.0, 2.0]]])
def test_scores_of_another_shape_are_refused(scores: object) -> None:
    with pytest.raises(PruningError, match="1-D tensor"):
        score_blocks(scores, "head")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiple": 0}, "multiple must be an integer of at least 1, got 0"),
        ({"multiple": 2.0}, "multiple must be an integer of at least 1, got 2.0"),
        ({"minimum": [1]}, "1 entries for 2 blocks"),
        ({"minimum": [1, 4]}, "block 1 is 4"),
        ({"minimum": [-1, 1]}, "block 0 is -1"),
        ({"uniform": True}, r"sizes \[2, 3\]"),
    ],
)
def test_invalid_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        build_ladders([torch.rand(2), torch.rand(3)], "head", **options)


def test_blocks_of_a_group_share_a_ladder_and_others_have_their_own() -> None:
    blocks = [torch.tensor([1.0, 5.0]), torch.tensor([9.0]), torch.tensor([40.0, 20.0]), torch.tensor([2.0, 3.0])]
    ladders = build_ladders(blocks, "filter", groups=["experts", None, "experts", None], minimum=[0, 1, 1, 0])
    assert [ladder.blocks for ladder in ladders] == [(0, 2), (1,), (3,)]
    assert [ladder.gains.tolist() for ladder in ladders] == [[45.0, 21.0], [9.0], [3.0, 2.0]]
    assert [ladder.floor for ladder in ladders] == [1, 1, 0]
    masks = ladder_masks(ladders, [1, 1, 0], blocks)
    assert [mask.tolist() for mask in masks] == [[False, True], [True], [True, False], [False, False]]


def test_a_multiple_per_block() -> None:
    ladders = build_ladders([torch.rand(6)] * 4, "filter", multiple=[1, 3, 2, 3], groups=[None, None, "a", "a"])
    assert [ladder.widths for ladder in ladders] == [(0, 1, 2, 3, 4, 5, 6), (0, 3, 6), (0, 6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["a"]}, "1 entries for 2 blocks"),
        ({"groups": ["a", "a"]}, r"the group 'a' needs filter blocks of one size, but these have sizes \[2, 3\]"),
        ({"multiple": [1]}, "1 entries for 2 blocks"),
        ({"multiple": [1, 0]}, "got 0"),
    ],
)
def test_invalid_groups_are_named(options: dict, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        build_ladders([torch.rand(2), torch.rand(3)], "filter", **options)
