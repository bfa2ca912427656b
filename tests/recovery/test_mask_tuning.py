"""Mask tuning against a dense least-squares solve of the system that the paper writes down."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import lsmr as scipy_lsmr

from hf_prune import PruningError, describe_model
from hf_prune.recovery import MaskTuner, NormalEquations, ReconstructionProblem, mask_tuning, solve_mask_scales
from hf_prune.recovery.mask_tuning import acceptable, unit_equations
from tests.small_models import case

TOKENS, HIDDEN = 25, 6


class Problem:
    """Random tokens h, weights W, bias c and targets b of one block."""

    def __init__(self, units: int, width: int, bias: bool = True, seed: int = 0, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.units, self.width = units, width
        self.inputs = normal(TOKENS, units * width)
        self.weight = normal(HIDDEN, units * width)
        self.bias = normal(HIDDEN) if bias else None
        own = self.inputs @ self.weight.T + (self.bias if bias else 0)
        self.targets = scale * own + 0.3 * normal(TOKENS, HIDDEN)
        self.equations = NormalEquations.zeros(units * width, HIDDEN, torch.device("cpu"))
        for rows in torch.arange(TOKENS).split(7):
            self.equations.add(self.inputs[rows], self.targets[rows])

    def dense_scales(self, damp: float) -> torch.Tensor:
        """argmin ‖A r − (b − A·1)‖² + damp² ‖r‖², with A written out: a column per unit, a row per token and output."""
        columns = []
        for unit in range(self.units):
            part = slice(unit * self.width, (unit + 1) * self.width)
            columns.append((self.inputs[:, part] @ self.weight[:, part].T).flatten())
        matrix = torch.stack(columns, dim=1)
        target = (self.targets - (self.bias if self.bias is not None else 0)).flatten() - matrix.sum(1)
        damped = torch.cat([matrix, damp * torch.eye(self.units, dtype=torch.float64)])
        right = torch.cat([target, torch.zeros(self.units, dtype=torch.float64)])
        return 1 + torch.linalg.lstsq(damped, right[:, None], driver="gelsd").solution[:, 0]

    def scales(self, damp: float, **options: Any) -> torch.Tensor:
        columns = torch.arange(self.units).repeat_interleave(self.width)
        return solve_mask_scales(*unit_equations(self.equations, self.weight, self.bias, columns), damp, **options)


@pytest.mark.parametrize(("units", "width"), [(4, 8), (12, 1), (1, 3), (40, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("damp", [1.0, 0.1, 3.0])
def test_equals_a_dense_solve(units: int, width: int, bias: bool, damp: float) -> None:
    problem = Problem(units, width, bias)
    found = problem.scales(damp)
    assert found.dtype == torch.float64
    assert torch.allclose(found, problem.dense_scales(damp), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, torch.ones(units, dtype=torch.float64), atol=1e-3)


def test_equals_a_dense_solve_without_damping() -> None:
    problem = Problem(12, 1)
    assert torch.allclose(problem.scales(0.0), problem.dense_scales(0.0), rtol=1e-9)


def test_columns_of_a_unit_need_not_be_neighbours() -> None:
    problem = Problem(4, 8)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    shuffled = NormalEquations.zeros(32, HIDDEN, torch.device("cpu"))
    shuffled.add(problem.inputs[:, order], problem.targets)
    owners = torch.arange(4).repeat_interleave(8)[order]
    found = unit_equations(shuffled, problem.weight[:, order], problem.bias, owners)
    assert torch.allclose(solve_mask_scales(*found), problem.dense_scales(1.0), rtol=1e-9, atol=1e-9)
    single = Problem(12, 1)
    backwards = NormalEquations.zeros(12, HIDDEN, torch.device("cpu"))
    backwards.add(single.inputs.flip(1), single.targets)
    found = unit_equations(backwards, single.weight.flip(1), single.bias, torch.arange(12).flip(0))
    assert torch.allclose(solve_mask_scales(*found), single.dense_scales(1.0), rtol=1e-9, atol=1e-9)


def test_singular_system_gets_the_least_change() -> None:
    # Two units that say the same share the change between them.
    gram = torch.tensor([[2.0, 2.0], [2.0, 2.0]])
    scales = solve_mask_scales(gram, torch.tensor([6.0, 6.0]), damp=0.0)
    assert torch.allclose(scales, torch.tensor([1.5, 1.5], dtype=torch.float64))
    assert torch.equal(solve_mask_scales(torch.zeros(2, 2), torch.zeros(2), damp=0.0), torch.ones(2).double())


@pytest.mark.parametrize(("units", "width"), [(4, 8), (12, 1), (40, 1)])
@pytest.mark.parametrize("damp", [1.0, 3.0])
def test_lsmr_agrees_with_the_direct_solve(units: int, width: int, damp: float) -> None:
    problem = Problem(units, width)
    found = problem.scales(damp, solver="lsmr")
    assert torch.allclose(found, problem.scales(damp), rtol=1e-3, atol=1e-3)


def test_lsmr_runs_as_on_the_system_itself() -> None:
    problem = Problem(12, 1)
    matrix = (problem.inputs[:, None, :] * problem.weight[None]).reshape(-1, 12)
    rest = (problem.targets - problem.bias).flatten() - matrix.sum(1)
    expected = 1 + torch.from_numpy(scipy_lsmr(matrix.numpy(), rest.numpy(), damp=1.0, maxiter=60)[0])
    assert torch.allclose(problem.scales(1.0, solver="lsmr"), expected, rtol=1e-4, atol=1e-4)


def test_lsmr_that_does_not_converge_gives_nothing_acceptable(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(12, 1)
    right = mask_tuning._lsmr_backend(torch.device("cpu"))
    assert acceptable(problem.scales(1.0, solver="lsmr"))

    def stopped_early(*arguments: Any, maxiter: int, **options: Any) -> Any:
        return right[1](*arguments, maxiter=1, **options)

    monkeypatch.setattr(mask_tuning, "_lsmr_backend", lambda device: (right[0], stopped_early, right[2]))
    assert not acceptable(problem.scales(1.0, solver="lsmr"))


class TestOnAGpu:
    """CuPy's part is played by NumPy and SciPy, with CuPy's names and signatures."""

    @pytest.fixture
    def cupy(self, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
        """What CuPy was given, as far as it plays a part."""
        given: list[np.ndarray] = []

        def from_dlpack(tensor: torch.Tensor) -> np.ndarray:
            given.append(np.from_dlpack(tensor))  # type: ignore[arg-type]
            return given[-1]

        def lsmr(A: Any, b: Any, x0: Any = None, damp: float = 0.0, *, maxiter: int | None = None) -> Any:
            return scipy_lsmr(A, b, damp=damp, x0=x0, maxiter=maxiter)

        modules = {name: ModuleType(name) for name in ("cupy", "cupyx", "cupyx.scipy", "cupyx.scipy.sparse")}
        modules["cupyx.scipy.sparse.linalg"] = linalg = ModuleType("linalg")
        modules["cupy"].from_dlpack, linalg.lsmr = from_dlpack, lsmr  # type: ignore[attr-defined]
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        backend = mask_tuning._lsmr_backend
        monkeypatch.setattr(mask_tuning, "_lsmr_backend", lambda device: backend(torch.device("cuda")))
        return given

    def test_cupy_solves_what_scipy_does(self, cupy: list[np.ndarray]) -> None:
        problem = Problem(12, 1)
        found = problem.scales(1.0, solver="lsmr")
        assert [array.shape for array in cupy] == [(12, 12), (12,)]
        assert torch.allclose(found, problem.scales(1.0), rtol=1e-3, atol=1e-3)

    def test_nothing_is_copied(self, cupy: list[np.ndarray]) -> None:
        to_array, _, to_tensor = mask_tuning._lsmr_backend(torch.device("cuda"))
        tensor = torch.zeros(3)
        to_tensor(to_array(tensor))[1] = 2.0
        assert tensor.tolist() == [0.0, 2.0, 0.0]

    def test_without_cupy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)
        with pytest.raises(PruningError, match=r"pip install 'hf-prune\[cuda12\]'.*solver='direct'"):
            mask_tuning._lsmr_backend(torch.device("cuda"))


@pytest.mark.parametrize(
    ("scales", "accepted"),
    [([1.0, -10.0, 10.0], True), ([1.0, 10.001], False), ([-10.001], False), ([torch.nan], False), ([], True)],
)
def test_accepted_range(scales: list[float], accepted: bool) -> None:
    assert acceptable(torch.tensor(scales)) is accepted


@pytest.mark.parametrize(
    ("gram", "target", "options", "message"),
    [
        (torch.ones(2, 3), torch.ones(2), {}, r"gram \(2, 3\) and target \(2,\) do not fit"),
        (torch.ones(2, 2), torch.ones(3), {}, "do not fit"),
        (torch.ones(2), torch.ones(2), {}, "do not fit"),
        (torch.ones(2, 2), torch.ones(2), {"solver": "qr"}, "solver='qr' is unknown; use 'direct' or 'lsmr'"),
    ],
)
def test_bad_input(gram: torch.Tensor, target: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        solve_mask_scales(gram, target, **options)


class TestTuner:
    def problem(self, scale: float = 1.0, seed: int = 0) -> ReconstructionProblem:
        """Eight tokens more in the first half; the tuner uses both."""
        blocks = describe_model(case("bert", "bare").model()).blocks
        made = Problem(12, 1, seed=seed, scale=scale)
        fit, held_out = (NormalEquations.zeros(12, HIDDEN, torch.device("cpu")) for _ in range(2))
        fit.add(made.inputs[:17], made.targets[:17])
        held_out.add(made.inputs[17:], made.targets[17:])
        self.made = made
        return ReconstructionProblem(blocks[1], made.weight, made.bias, torch.arange(12), fit, held_out)

    def test_scales_are_folded_into_the_columns(self) -> None:
        repair = MaskTuner(damp=1.0)(self.problem())
        assert torch.allclose(repair.weight, self.made.weight * self.made.dense_scales(1.0), rtol=1e-9)
        assert torch.equal(repair.bias, self.made.bias)

    def test_first_block_out_of_range_stops_all_later_ones(self) -> None:
        tuner = MaskTuner()
        assert tuner(self.problem()) is not None
        assert tuner.stopped_at is None
        assert tuner(self.problem(scale=20.0)) is None
        assert tuner.stopped_at == "encoder.layer.0.intermediate"
        assert tuner(self.problem(seed=1)) is None

    def test_block_without_units_is_left_alone(self) -> None:
        blocks = describe_model(case("bert", "bare").model()).blocks
        nothing = NormalEquations.zeros(0, HIDDEN, torch.device("cpu"))
        tuner = MaskTuner()
        weight, bias, none = torch.zeros(HIDDEN, 0), torch.zeros(HIDDEN), torch.arange(0)
        problem = ReconstructionProblem(blocks[1], weight, bias, none, nothing, nothing)
        assert tuner(problem) is None
        assert tuner.stopped_at is None
