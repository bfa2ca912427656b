"""Optimal Brain Surgeon on a block, against least squares from scratch and against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from hf_prune.errors import PruningError
from hf_prune.scores import RemovalCurve, removal_curve

HIDDEN = 5


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs_of(columns: int, seed: int) -> torch.Tensor:
    """Columns that depend on each other, as filters do."""
    return normal(40, columns, seed=seed) @ (torch.eye(columns) + 0.5 * normal(columns, columns, seed=seed + 1))


def error_without(
    inputs: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, gone: set[int], ridge: float
) -> float:
    """Σ ‖W h − W' h‖² + ridge · s · ‖W − W'‖² at its minimum over weights W' of the other units alone."""
    stays = torch.tensor([int(unit) not in gone for unit in columns])
    scale = (ridge * inputs.square().sum(0).mean()).sqrt()
    rows = torch.cat([inputs, scale * torch.eye(inputs.shape[1], dtype=inputs.dtype)])
    wanted = rows @ weight.T
    solution = torch.linalg.lstsq(rows[:, stays], wanted).solution
    return float((rows[:, stays] @ solution - wanted).square().sum())


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("together", [1, 2])
def test_errors_add_up_to_that_of_a_refit_from_scratch(ridge: float, width: int, together: int) -> None:
    units = 6
    inputs, weight = inputs_of(units * width, seed=1), normal(HIDDEN, units * width, seed=3)
    columns = torch.arange(units).repeat_interleave(width)
    curve = removal_curve(inputs.T @ inputs, weight, columns, ridge, together)
    assert sorted(curve.order.tolist()) == list(range(units))
    for removed, total in enumerate(curve.errors.cumsum(0), start=1):
        expected = error_without(inputs, weight, columns, set(curve.order[:removed].tolist()), ridge)
        assert float(total) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [1, 2])
def test_each_unit_is_the_best_to_go_next(seed: int, width: int) -> None:
    units = 6
    inputs, weight = inputs_of(units * width, seed=seed), normal(HIDDEN, units * width, seed=seed + 20)
    columns = torch.arange(units).repeat_interleave(width)
    order = removal_curve(inputs.T @ inputs, weight, columns).order.tolist()
    for step, unit in enumerate(order):
        gone = set(order[:step])
        errors = {
            other: error_without(inputs, weight, columns, gone | {other}, 0.0) for other in set(range(units)) - gone
        }
        assert unit == min(errors, key=errors.__getitem__)


def test_redundant_units_do_not_go_both() -> None:
    """Scores that look at one unit at a time would remove both of two equal columns, and keep the noise."""
    inputs = inputs_of(4, seed=2)
    inputs[:, 1] = inputs[:, 0] + 1e-6 * normal(40, seed=5)
    inputs[:, 2:] *= 0.1
    weight = normal(HIDDEN, 4, seed=6)
    curve = removal_curve(inputs.T @ inputs, weight, torch.arange(4), 1e-9)
    assert set(curve.order[:2].tolist()) & {2, 3}
    assert curve.errors[0] < 1e-6 * curve.errors.sum()
    assert int(curve.order[-1]) in (0, 1)


def test_columns_of_a_unit_may_lie_anywhere() -> None:
    units, width = 4, 3
    inputs, weight = inputs_of(units * width, seed=3), normal(HIDDEN, units * width, seed=4)
    columns = torch.arange(units).repeat_interleave(width)
    mixed = torch.randperm(units * width, generator=torch.Generator().manual_seed(0))
    expected = removal_curve(inputs.T @ inputs, weight, columns)
    moved = inputs[:, mixed]
    found = removal_curve(moved.T @ moved, weight[:, mixed], columns[mixed])
    assert torch.equal(found.order, expected.order)
    assert torch.allclose(found.errors, expected.errors)


def test_many_together_err_hardly_more_than_one_at_a_time() -> None:
    inputs, weight = inputs_of(30, seed=7), normal(HIDDEN, 30, seed=8)
    one, many = (removal_curve(inputs.T @ inputs, weight, torch.arange(30), 1e-3, count) for count in (1, 4))
    assert torch.equal(one.order[:4], many.order[:4])
    assert many.errors[:20].sum() <= 1.1 * one.errors[:20].sum()


class TestScores:
    @pytest.mark.parametrize("errors", [[1.0, 3.0, 2.0, 5.0], [0.0, 0.0, 0.0, 0.0], [4.0, 1.0, 1.0, 2.0]])
    def test_lowest_scores_are_the_units_that_go_first(self, errors: list[float]) -> None:
        order = torch.tensor([2, 0, 3, 1])
        scores = RemovalCurve(order, torch.tensor(errors, dtype=torch.float64)).scores()
        assert torch.equal(scores.argsort(stable=True), order)
        assert len(set(scores.tolist())) == 4
        assert float(scores.sum()) == pytest.approx(sum(errors), rel=1e-6, abs=1e-300)

    def test_partial_sums_are_the_lower_convex_hull(self) -> None:
        errors = normal(12, seed=9).square()
        found = RemovalCurve(torch.arange(12), errors).scores().cumsum(0)
        curve = torch.cat([torch.zeros(1), errors.cumsum(0)]).tolist()
        for place in range(1, 12):
            lines = [
                curve[left] + (place - left) / (right - left) * (curve[right] - curve[left])
                for left, right in itertools.product(range(place + 1), range(place, 13))
                if left < right
            ]
            assert float(found[place - 1]) == pytest.approx(min(lines), rel=1e-6)


class TestBadInput:
    def test_shapes_that_do_not_fit(self) -> None:
        with pytest.raises(PruningError, match="do not fit"):
            removal_curve(torch.eye(4), normal(HIDDEN, 3), torch.arange(4))

    def test_units_of_different_sizes(self) -> None:
        with pytest.raises(PruningError, match="equally many"):
            removal_curve(torch.eye(3), normal(HIDDEN, 3), torch.tensor([0, 0, 1]))

    def test_a_singular_matrix_without_a_ridge(self) -> None:
        with pytest.raises(PruningError, match="not positive definite, with a ridge of"):
            removal_curve(torch.diag(torch.tensor([1.0, 2.0, 0.0])), normal(HIDDEN, 3), torch.arange(3))


@pytest.mark.parametrize("units", [0, 3])
def test_a_block_that_puts_nothing_out_costs_nothing(units: int) -> None:
    curve = removal_curve(torch.zeros(units, units), normal(HIDDEN, units), torch.arange(units))
    assert curve.errors.tolist() == [0.0] * units
    assert curve.scores().shape == (units,)
    assert float(curve.scores().sum()) < 1e-300


def test_rounding_is_damped_away() -> None:
    """A covariance that is little more than what rounding has left of the sums it was made of."""
    units, ridge = 8, 1e-2
    inputs = inputs_of(units, seed=1)
    gram = inputs.T @ inputs
    values, vectors = torch.linalg.eigh(gram)
    values[0] = -3 * ridge * gram.diagonal().mean()
    curve = removal_curve(vectors * values @ vectors.T, normal(HIDDEN, units, seed=3), torch.arange(units), ridge)
    assert sorted(curve.order.tolist()) == list(range(units))
    assert torch.isfinite(curve.errors).all()
    assert (curve.errors > 0).all()
