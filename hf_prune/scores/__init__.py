"""How important each unit is."""

from .gradient_rows import GradientRows
from .gradients import evaluating, fisher_gradients, frozen, iterate_gradients, modes_restored
from .importance import fisher_scores, gradient_scores, magnitude_scores, random_scores
from .movement import MovementScores, ParameterScores
from .schedule import PruningSchedule, cubic_sparsity
from .weights import MagnitudeScores, RandomScores, WeightScores

__all__ = [
    "GradientRows",
    "MagnitudeScores",
    "MovementScores",
    "ParameterScores",
    "PruningSchedule",
    "RandomScores",
    "WeightScores",
    "cubic_sparsity",
    "evaluating",
    "fisher_gradients",
    "fisher_scores",
    "frozen",
    "gradient_scores",
    "iterate_gradients",
    "magnitude_scores",
    "modes_restored",
    "random_scores",
]
