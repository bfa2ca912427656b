"""How important each unit is."""

from .activations import smallest_mean, unused
from .gradient_rows import GradientRows, collect_gradients
from .gradients import evaluating, fisher_gradients, frozen, iterate_gradients, modes_restored
from .head_importance import head_importance
from .importance import blend_scores, fisher_scores, gradient_scores, magnitude_scores, random_scores, unit_energies
from .layer_influence import block_influence
from .learnt_gates import LearntGates, expected_cost, penalty_slope
from .model_labels import Labels, iterate_model_gradients, label_direction, whose_labels, with_drawn_labels
from .moments import moments_of, put_moments, stored_moments
from .movement import MovementScores, ParameterScores
from .output_information import OutputInformation, metric_root
from .removal import RemovalCurve, removal_curve
from .schedule import PruningSchedule, cubic_sparsity
from .weights import MagnitudeScores, RandomScores, WeightScores

__all__ = [
    "GradientRows",
    "Labels",
    "LearntGates",
    "MagnitudeScores",
    "MovementScores",
    "OutputInformation",
    "ParameterScores",
    "PruningSchedule",
    "RandomScores",
    "RemovalCurve",
    "WeightScores",
    "blend_scores",
    "block_influence",
    "collect_gradients",
    "cubic_sparsity",
    "evaluating",
    "expected_cost",
    "fisher_gradients",
    "fisher_scores",
    "frozen",
    "gradient_scores",
    "head_importance",
    "iterate_gradients",
    "iterate_model_gradients",
    "label_direction",
    "magnitude_scores",
    "metric_root",
    "modes_restored",
    "moments_of",
    "penalty_slope",
    "put_moments",
    "random_scores",
    "removal_curve",
    "smallest_mean",
    "stored_moments",
    "unit_energies",
    "unused",
    "whose_labels",
    "with_drawn_labels",
]
