from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from hf_prune.gates.singular_values import power_iteration, stretch, top_singular_vector


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 6), (6, 1), (1, 1)])
def test_the_exact_vector_is_stretched_by_the_largest_singular_value(shape: tuple[int, int]) -> None:
    weight = matrix(*shape)
    vector = top_singular_vector(weight)
    assert vector.shape == (shape[1],)
    torch.testing.assert_close(vector.norm(), torch.tensor(1.0))
    torch.testing.assert_close(stretch(weight, vector), torch.linalg.svdvals(weight)[0])
    torch.testing.assert_close(stretch(weight, 7 * vector), torch.linalg.svdvals(weight)[0])


@pytest.mark.parametrize("shape", [(3, 4), (4, 3)])
def test_zeros_have_a_unit_vector_too(shape: tuple[int, int]) -> None:
    vector = top_singular_vector(torch.zeros(shape))
    torch.testing.assert_close(vector.norm(), torch.tensor(1.0))
    assert stretch(torch.zeros(shape), vector) == 0


def test_power_iteration_rises_to_the_largest_singular_value() -> None:
    weight, vector = matrix(6, 5), torch.ones(5) / 5**0.5
    values = [float(stretch(weight, power_iteration(weight, vector, steps))) for steps in range(40)]
    largest = float(torch.linalg.svdvals(weight)[0])
    assert all(one <= other + 1e-6 for one, other in pairwise(values))
    assert values[0] < 0.9 * largest
    assert values[-1] == pytest.approx(largest, rel=1e-5)


def test_power_iteration_is_repeated_multiplication() -> None:
    weight, vector = matrix(6, 5), matrix(5, 1)[:, 0]
    literal = torch.linalg.matrix_power(weight.T @ weight, 3) @ vector
    torch.testing.assert_close(power_iteration(weight, vector, 3), literal / literal.norm())


def test_a_vector_whose_columns_have_become_zero_begins_anew() -> None:
    weight = matrix(6, 5)
    weight[:, :2] = 0
    lost = torch.tensor([0.6, 0.8, 0, 0, 0])
    assert stretch(weight, lost) == 0
    found = power_iteration(weight, lost, 60)
    torch.testing.assert_close(stretch(weight, found), torch.linalg.svdvals(weight)[0])
