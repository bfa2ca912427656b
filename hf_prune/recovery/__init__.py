"""What repairs a cut: without training, or with a teacher while it is trained."""

from .dense_scores import contributed_energies, removal_curves
from .distillation import Distillation, check_distillation, distillation_loss
from .mask_tuning import Solver, solve_mask_scales
from .normal_equations import NormalEquations
from .rearrange import rearrange_mask
from .reconstruction import Choose, ReconstructionProblem, Units, Walk, reconstruct
from .refit import choose_ridge, refit_projection
from .repaired_weights import Repair
from .repairs import MaskTuner, refit_weights

__all__ = [
    "Choose",
    "Distillation",
    "MaskTuner",
    "NormalEquations",
    "ReconstructionProblem",
    "Repair",
    "Solver",
    "Units",
    "Walk",
    "check_distillation",
    "choose_ridge",
    "contributed_energies",
    "distillation_loss",
    "rearrange_mask",
    "reconstruct",
    "refit_projection",
    "refit_weights",
    "removal_curves",
    "solve_mask_scales",
]
