"""The ridge regression of output projections against dense solves, and against mask tuning."""

from __future__ import annotations

import pytest
import torch

from hf_prune import describe_model
from hf_prune.recovery import (
    NormalEquations,
    ReconstructionProblem,
    choose_ridge,
    normal_equations,
    refit_projection,
    refit_weights,
    solve_mask_scales,
)
from hf_prune.recovery.mask_tuning import unit_equations
from hf_prune.recovery.normal_equations import TokenBuffer
from hf_prune.recovery.refit import DEFAULT_RIDGE, RIDGE_GRID
from tests.small_models import case

HIDDEN, COLUMNS = 6, 12


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def equations(inputs: torch.Tensor, targets: torch.Tensor) -> NormalEquations:
    result = NormalEquations.zeros(inputs.shape[1], targets.shape[1], torch.device("cpu"))
    for rows in torch.arange(len(inputs)).split(9):
        result.add(inputs[rows], targets[rows])
    return result


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets, old weight and old bias."""
    inputs, weight, bias = normal(60, COLUMNS, seed=1), normal(HIDDEN, COLUMNS, seed=2), normal(HIDDEN, seed=3)
    targets = inputs @ (weight + 0.4 * normal(HIDDEN, COLUMNS, seed=4)).T + 0.5 + 0.3 * normal(60, HIDDEN, seed=5)
    return inputs, targets, weight, bias


def error(inputs: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> float:
    return (inputs @ weight.T + (0 if bias is None else bias) - targets).square().sum().item()


def dense_ridge(inputs, targets, weight, ridge: float, with_bias: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same minimum from a stacked system: the rows of the penalty below the rows of the tokens."""
    scale = inputs.square().sum(0).mean()
    tokens = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1) if with_bias else inputs
    penalty = (ridge * scale).sqrt() * torch.eye(COLUMNS, tokens.shape[1], dtype=torch.float64)
    right = torch.cat([targets, (ridge * scale).sqrt() * weight.T])
    solution = torch.linalg.lstsq(torch.cat([tokens, penalty]), right).solution
    return solution[:COLUMNS].T, solution[COLUMNS] if with_bias else None


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_a_dense_ridge_regression(data, ridge: float, with_bias: bool) -> None:
    inputs, targets, weight, bias = data
    found = refit_projection(equations(inputs, targets), weight, bias if with_bias else None, ridge)
    expected = dense_ridge(inputs, targets, weight, ridge, with_bias)
    assert torch.allclose(found[0], expected[0], rtol=1e-8, atol=1e-8)
    assert (found[1] is None) is not with_bias
    assert not with_bias or torch.allclose(found[1], expected[1], rtol=1e-8, atol=1e-8)


def test_error_is_the_sum_over_tokens(data) -> None:
    inputs, targets, weight, bias = data
    sums = equations(inputs, targets)
    assert sums.error(weight, bias) == pytest.approx(error(inputs, targets, weight, bias), rel=1e-10)
    assert sums.error(weight) == pytest.approx(error(inputs, targets, weight, None), rel=1e-10)
    halves = equations(inputs[:20], targets[:20]) + equations(inputs[20:], targets[20:])
    assert all(torch.allclose(one, other) for one, other in zip(halves.tensors(), sums.tensors(), strict=True))
    assert sums.tokens == 60


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("with_bias", [True, False])
def test_without_ridge_never_worse_than_mask_tuning(width: int, seed: int, with_bias: bool) -> None:
    inputs, weight = normal(40, COLUMNS, seed=seed), normal(HIDDEN, COLUMNS, seed=seed + 10)
    bias = normal(HIDDEN, seed=seed + 20) if with_bias else None
    targets = normal(40, HIDDEN, seed=seed + 30)
    sums = equations(inputs, targets)
    owners = torch.arange(COLUMNS // width).repeat_interleave(width)
    scales = solve_mask_scales(*unit_equations(sums, weight, bias, owners), damp=0.0)[owners]
    tuned = error(inputs, targets, weight * scales, bias)
    refitted = error(inputs, targets, *refit_projection(sums, weight, bias, 0.0))
    assert refitted <= tuned <= error(inputs, targets, weight, bias)


def test_directions_without_data_keep_their_weights() -> None:
    inputs = torch.cat([normal(30, 5, seed=1), torch.zeros(30, COLUMNS - 5, dtype=torch.float64)], dim=1)
    weight, bias = normal(HIDDEN, COLUMNS, seed=2), normal(HIDDEN, seed=3)
    targets = normal(30, HIDDEN, seed=4)
    for ridge in (0.0, 1e-3):
        found, _ = refit_projection(equations(inputs, targets), weight, bias, ridge)
        assert torch.allclose(found[:, 5:], weight[:, 5:], atol=1e-9)
        assert not torch.allclose(found[:, :5], weight[:, :5], atol=1e-2)


def test_dtype_of_the_old_weights_is_kept(data) -> None:
    inputs, targets, weight, bias = data
    found = refit_projection(equations(inputs, targets), weight.bfloat16(), bias.half(), 0.1)
    assert [value.dtype for value in found] == [torch.bfloat16, torch.float16]


class TestStrength:
    def test_is_the_one_with_the_least_error_on_held_out_tokens(self, data) -> None:
        inputs, targets, weight, bias = data
        fit, held_out = (inputs[:20], targets[:20]), (inputs[20:], targets[20:])
        chosen = choose_ridge(equations(*fit), equations(*held_out), weight, bias)
        errors = {ridge: error(*held_out, *dense_ridge(*fit, weight, ridge, True)) for ridge in RIDGE_GRID}
        assert chosen == min(errors, key=errors.__getitem__)
        assert len(set(errors.values())) == len(RIDGE_GRID)

    @pytest.mark.parametrize("seed", range(10))
    def test_no_neighbouring_strength_is_better(self, seed: int) -> None:
        weight, bias = normal(HIDDEN, COLUMNS, seed=seed), normal(HIDDEN, seed=seed + 50)
        fit, held_out = (normal(14, COLUMNS, seed=seed + 1), normal(9, COLUMNS, seed=seed + 2))
        change = 0.3 * normal(HIDDEN, COLUMNS, seed=seed + 3)
        pairs = [(rows, rows @ (weight + change).T + normal(len(rows), HIDDEN, seed=seed)) for rows in (fit, held_out)]
        chosen = choose_ridge(*(equations(*pair) for pair in pairs), weight, bias)
        errors = [error(*pairs[1], *dense_ridge(*pairs[0], weight, ridge, True)) for ridge in RIDGE_GRID]
        assert chosen in (None, *RIDGE_GRID)
        if chosen is not None:
            at = RIDGE_GRID.index(chosen)
            assert errors[at] <= min(errors[max(0, at - 1) : at + 2])
            assert errors[at] < error(*pairs[1], weight, bias)

    def test_none_where_the_old_weights_are_better(self) -> None:
        inputs, weight, bias = normal(14, COLUMNS, seed=1), normal(HIDDEN, COLUMNS, seed=2), normal(HIDDEN, seed=3)
        noisy = equations(inputs, 50 * normal(14, HIDDEN, seed=4))
        exact = equations(inputs, inputs @ weight.T + bias)
        assert choose_ridge(noisy, exact, weight, bias) is None

    def test_default_where_nothing_is_held_out(self, data) -> None:
        inputs, targets, weight, bias = data
        nothing = NormalEquations.zeros(COLUMNS, HIDDEN, torch.device("cpu"))
        assert choose_ridge(equations(inputs, targets), nothing, weight, bias) == DEFAULT_RIDGE


def test_weights_that_explode_are_not_taken() -> None:
    # Activations near zero, targets that are not: only weights a million times as large would fit them.
    block = describe_model(case("bert", "bare").model()).blocks[1]
    inputs, weight = 1e-6 * normal(60, COLUMNS, seed=1), normal(HIDDEN, COLUMNS, seed=2)
    targets = inputs @ (1e6 * normal(HIDDEN, COLUMNS, seed=3)).T
    parts = [equations(inputs[rows], targets[rows]) for rows in torch.arange(60).split(30)]
    repair = refit_weights(ReconstructionProblem(block, weight, None, torch.arange(COLUMNS), *parts))
    assert repair is None or repair.weight.norm() <= 10 * weight.norm()
    assert refit_projection(parts[0], weight, None, 1e-6)[0].norm() > 1e4 * weight.norm()


def test_tokens_can_be_handed_over_many_at_a_time(data, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets, _, _ = data
    monkeypatch.setattr(normal_equations, "TOKENS_AT_ONCE", 16)
    buffer = TokenBuffer(NormalEquations.zeros(COLUMNS, HIDDEN, torch.device("cpu")))
    for rows in torch.arange(60).split(7):
        buffer.add(inputs[rows], targets[rows])
    found, expected = buffer.flush(), equations(inputs, targets)
    assert found.tokens == 60
    assert all(torch.allclose(one, other) for one, other in zip(found.tensors(), expected.tensors(), strict=True))
    assert all(torch.equal(*pair) for pair in zip(buffer.flush().tensors(), found.tensors(), strict=True))


def test_repair_uses_all_tokens_once_the_strength_is_chosen(data) -> None:
    inputs, targets, weight, bias = data
    block = describe_model(case("bert", "bare").model()).blocks[1]
    fit, held_out = equations(inputs[:40], targets[:40]), equations(inputs[40:], targets[40:])
    repair = refit_weights(ReconstructionProblem(block, weight, bias, torch.arange(weight.shape[1]), fit, held_out))
    ridge = choose_ridge(fit, held_out, weight, bias)
    expected = dense_ridge(inputs, targets, weight, ridge, True)
    assert torch.allclose(repair.weight, expected[0], rtol=1e-8)
    assert torch.allclose(repair.bias, expected[1], rtol=1e-8)


def test_block_without_columns_gets_a_new_bias_only() -> None:
    block = describe_model(case("bert", "bare").model()).blocks[1]
    targets = normal(40, HIDDEN, seed=1) + 3
    empty = torch.zeros(40, 0, dtype=torch.float64)
    fit, held_out = equations(empty[:30], targets[:30]), equations(empty[30:], targets[30:])
    weight, bias = torch.zeros(HIDDEN, 0, dtype=torch.float64), torch.zeros(HIDDEN, dtype=torch.float64)
    repair = refit_weights(ReconstructionProblem(block, weight, bias, torch.arange(weight.shape[1]), fit, held_out))
    assert repair.weight.shape == (HIDDEN, 0)
    assert torch.allclose(repair.bias, targets.mean(0))
