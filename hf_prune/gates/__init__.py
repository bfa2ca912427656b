"""What can be put on a model and taken off again."""

from .bare import check_bare
from .epsilon import check_epsilon, epsilon_gate
from .epsilon_gates import EpsilonGates, add_epsilon_gates, epsilon_gates_of, remove_epsilon_gates
from .folded_state import fold_in_state_dict
from .hard_concrete import gate_noise, hard_concrete, open_probability
from .matrix_masks import MatrixMasks, check_masks
from .mixins import BinaryMaskMixin, EpsilonGateMixin, FilterGateMixin, HeadGateMixin, SpectralNormMixin
from .residual_mappings import MappingKind, ResidualMapping, residual_mappings
from .spectral_norm import (
    add_spectral_norm,
    has_spectral_norm,
    largest_singular_values,
    load_spectral_state,
    remove_spectral_norm,
    restart_spectral_norm,
    spectral_state,
)
from .unit_gates import (
    UnitGate,
    UnitGates,
    add_filter_gates,
    add_head_gates,
    gate_columns,
    has_gates,
    remove_filter_gates,
    remove_head_gates,
)
from .weight_masks import WeightMasks, add_weight_masks, remove_weight_masks, weight_masks_of

__all__ = [
    "BinaryMaskMixin",
    "EpsilonGateMixin",
    "EpsilonGates",
    "FilterGateMixin",
    "HeadGateMixin",
    "MappingKind",
    "MatrixMasks",
    "ResidualMapping",
    "SpectralNormMixin",
    "UnitGate",
    "UnitGates",
    "WeightMasks",
    "add_epsilon_gates",
    "add_filter_gates",
    "add_head_gates",
    "add_spectral_norm",
    "add_weight_masks",
    "check_bare",
    "check_epsilon",
    "check_masks",
    "epsilon_gate",
    "epsilon_gates_of",
    "fold_in_state_dict",
    "gate_columns",
    "gate_noise",
    "hard_concrete",
    "has_gates",
    "has_spectral_norm",
    "largest_singular_values",
    "load_spectral_state",
    "open_probability",
    "remove_epsilon_gates",
    "remove_filter_gates",
    "remove_head_gates",
    "remove_spectral_norm",
    "remove_weight_masks",
    "residual_mappings",
    "restart_spectral_norm",
    "spectral_state",
    "weight_masks_of",
]
