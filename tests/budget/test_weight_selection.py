from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hf_prune import PruningError
from hf_prune.budget import (
    kept_count,
    kth_largest,
    masks_above,
    masks_by_matrix,
    masks_over,
    masks_over_all,
    pattern_mask,
)

VALUES = st.one_of(st.floats(-3, 3, width=32), st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-38, -1e38]))
MATRICES = st.lists(
    arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=VALUES), min_size=1, max_size=4
)


@given(MATRICES, st.data())
@settings(max_examples=200, deadline=None)
def test_kth_largest_is_what_sorting_gives(matrices: list[np.ndarray], data: st.DataObject) -> None:
    everything = np.sort(np.concatenate([matrix.ravel() for matrix in matrices]))[::-1]
    k = data.draw(st.integers(1, len(everything)))
    assert kth_largest([torch.from_numpy(matrix) for matrix in matrices], k) == everything[k - 1]


@given(MATRICES, st.data())
@settings(max_examples=200, deadline=None)
def test_kept_weights_are_as_many_and_none_is_lower_than_a_removed_one(
    matrices: list[np.ndarray], data: st.DataObject
) -> None:
    scores = [torch.from_numpy(matrix) for matrix in matrices]
    total = sum(score.numel() for score in scores)
    keep = data.draw(st.integers(0, total))
    masks = masks_over(scores, keep)
    assert [mask.shape for mask in masks] == [score.shape for score in scores]
    kept = np.concatenate([score[mask].numpy() for score, mask in zip(scores, masks, strict=True)])
    removed = np.concatenate([score[~mask].numpy() for score, mask in zip(scores, masks, strict=True)])
    assert len(kept) == keep
    assert not len(kept) or not len(removed) or kept.min() >= removed.max()


def test_equal_scores_go_by_their_place() -> None:
    masks = masks_over([torch.tensor([1.0, 0.0, 1.0]), torch.tensor([[1.0, 1.0]])], 3)
    assert [mask.tolist() for mask in masks] == [[True, False, True], [[True, False]]]
    zeros = masks_over([torch.zeros(5)], 2)
    assert zeros[0].tolist() == [True, True, False, False, False]


def test_counts_are_exact_where_float32_is_not() -> None:
    assert kept_count(23_440_896, 0.3) == 23_440_896 - 7_032_269
    assert [kept_count(10, sparsity) for sparsity in (0.0, 0.29, 0.6, 0.7, 0.99)] == [10, 7, 4, 3, 0]


def test_every_matrix_loses_the_same_share() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(7, 9, generator=generator), 100 * torch.rand(4, 5, generator=generator)]
    masks = masks_by_matrix(scores, 0.6)
    for score, mask in zip(scores, masks, strict=True):
        best = score.flatten().sort(descending=True).indices[: kept_count(score.numel(), 0.6)]
        assert set(mask.flatten().nonzero().flatten().tolist()) == set(best.tolist())


def test_all_matrices_together_lose_the_lowest_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(7, 9, generator=generator), 2 * torch.rand(4, 5, generator=generator)]
    masks = masks_over_all(scores, 0.6)
    kept = torch.cat([score[mask] for score, mask in zip(scores, masks, strict=True)])
    highest = torch.cat([score.flatten() for score in scores]).sort(descending=True).values[: 83 - 50]
    assert torch.equal(kept.sort(descending=True).values, highest)


@pytest.mark.parametrize(("keep", "group", "axis"), [(2, 4, -1), (1, 4, -1), (2, 4, 0), (3, 8, -1), (4, 4, 1)])
def test_pattern_keeps_the_best_choice_of_every_group(keep: int, group: int, axis: int) -> None:
    scores = torch.rand(8, 16, generator=torch.Generator().manual_seed(1))
    mask = pattern_mask(scores, keep, group, axis)
    rows = scores.movedim(axis, -1).reshape(-1, group)
    kept = mask.movedim(axis, -1).reshape(-1, group)
    for row, chosen in zip(rows, kept, strict=True):
        best = max(combinations(range(group), keep), key=lambda places: row[list(places)].sum())
        assert tuple(chosen.nonzero().flatten().tolist()) == best


def test_tensors_that_lie_in_memory_by_columns() -> None:
    scores = torch.randint(5, (6, 7), generator=torch.Generator().manual_seed(0)).float()
    by_columns = scores.t().contiguous().t()
    assert not by_columns.is_contiguous()
    assert torch.equal(masks_over([by_columns], 20)[0], masks_over([scores], 20)[0])


def test_threshold_keeps_what_is_above() -> None:
    masks = masks_above([torch.tensor([0.1, 0.5]), torch.tensor([0.2])], 0.2)
    assert [mask.tolist() for mask in masks] == [[False, True], [False]]


def test_bad_scores_and_numbers_are_refused() -> None:
    bad = torch.tensor([0.0, float("nan")])
    for select in (
        lambda: masks_over([torch.zeros(2), bad], 1),
        lambda: masks_over([bad], 2),
        lambda: masks_above([bad], 0.5),
        lambda: pattern_mask(bad[None], 1, 2),
    ):
        with pytest.raises(PruningError, match="not numbers"):
            select()
    with pytest.raises(PruningError, match="5 weights cannot stay out of 4"):
        masks_over([torch.zeros(4)], 5)
    with pytest.raises(PruningError, match="groups of 4"):
        pattern_mask(torch.zeros(3, 6), 2, 4)
