"""The two ways to repair a block, as `Solve` functions for `reconstruct`."""

from __future__ import annotations

from .mask_tuning import Solver, acceptable, solve_mask_scales, unit_equations
from .reconstruction import ReconstructionProblem
from .refit import choose_ridge, reasonable, refit_on
from .repaired_weights import Repair


class MaskTuner:
    """The paper's repair: one scale per kept unit, folded into the output projection's columns.

    The first block whose scales leave [−10, 10] keeps its weights, and so do all later ones.

    Args:
        solver: see `solve_mask_scales`.
        damp: see `solve_mask_scales`.
    """

    def __init__(self, solver: Solver = "direct", damp: float = 1.0) -> None:
        self.solver: Solver = solver
        self.damp = damp
        self.stopped_at: str | None = None

    def __call__(self, problem: ReconstructionProblem) -> Repair | None:
        """Solves one block."""
        if self.stopped_at is not None or problem.weight.shape[1] == 0:
            return None
        gram, target = unit_equations(problem.fit + problem.held_out, problem.weight, problem.bias, problem.columns)
        scales = solve_mask_scales(gram, target, self.damp, self.solver)
        if not acceptable(scales):
            self.stopped_at = problem.block.key
            return None
        return Repair((problem.weight.double() * scales[problem.columns]).to(problem.weight.dtype), problem.bias)


def refit_weights(problem: ReconstructionProblem) -> Repair | None:
    """The default repair: the whole output projection, with the ridge strength that does best on held-out tokens."""
    ridge = choose_ridge(problem.fit, problem.held_out, problem.weight, problem.bias)
    if ridge is None:
        return None
    everything = (problem.fit, problem.held_out)
    weight, bias = refit_on(everything, problem.weight, problem.bias, ridge)
    return Repair(weight, bias) if reasonable(weight, problem.weight) else None
