from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune import PruningError
from hf_prune.budget import allocate_by_score, kept_count


def constant(values: list[float], sizes: list[int]) -> list[torch.Tensor]:
    """Matrices whose scores have these mean sigmoids."""
    return [
        torch.full((size,), float(torch.logit(torch.tensor(value)))) for value, size in zip(values, sizes, strict=True)
    ]


def test_levels_of_the_paper_by_hand() -> None:
    """v_l = v · L · R_l / Σ R, where no level is capped."""
    levels = allocate_by_score(constant([0.2, 0.4, 0.6], [100, 100, 100]), keep=0.3)
    assert levels == [0.15, 0.3, 0.45]


def test_what_a_whole_matrix_cannot_take_goes_to_the_others() -> None:
    """Uncapped 0.4, 0.8 and 1.2; the third keeps 1, and 140 of 240 weights are left for the others, 1 to 2."""
    levels = allocate_by_score(constant([0.2, 0.4, 0.6], [100, 100, 100]), keep=0.8)
    assert levels == [pytest.approx(0.47, abs=0.01), pytest.approx(0.93, abs=0.01), 1.0]
    assert round(sum(level * 100 for level in levels)) == 240


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 0.99)), min_size=1, max_size=8),
    st.floats(0, 1),
    st.floats(0.5, 4),
)
@settings(max_examples=200, deadline=None)
def test_levels_keep_the_total_and_follow_the_scores(
    matrices: list[tuple[int, float]], keep: float, temperature: float
) -> None:
    sizes, values = [size for size, _ in matrices], [value for _, value in matrices]
    scores = constant(values, sizes)
    levels = allocate_by_score(scores, keep, temperature)
    counts = [round(level * size) for level, size in zip(levels, sizes, strict=True)]
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert sum(counts) == kept_count(sum(sizes), 1 - keep)
    means = [float(torch.sigmoid(score.double() / temperature).mean()) for score in scores]
    wanted = bisected(means, sizes, sum(counts))
    assert all(abs(count - size * level) <= 1 + 1e-6 for count, size, level in zip(counts, sizes, wanted, strict=True))


def bisected(means: list[float], sizes: list[int], total: int) -> list[float]:
    """min(1, c · mean) with the right total, by trying values of c."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        kept = sum(min(1.0, middle * mean) * size for mean, size in zip(means, sizes, strict=True))
        low, high = (middle, high) if kept < total else (low, middle)
    return [min(1.0, high * mean) for mean in means]


def test_bad_arguments_are_refused() -> None:
    good = [torch.zeros(4)]
    with pytest.raises(PruningError, match=r"keep=1\.5"):
        allocate_by_score(good, 1.5)
    with pytest.raises(PruningError, match="temperature=0"):
        allocate_by_score(good, 0.5, 0)
    with pytest.raises(PruningError, match="NaN"):
        allocate_by_score([torch.tensor([float("nan")])], 0.5)
