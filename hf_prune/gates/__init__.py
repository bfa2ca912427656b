"""What can be put on a model and taken off again."""

from .matrix_masks import MatrixMasks, check_masks
from .mixins import BinaryMaskMixin, FilterGateMixin, HeadGateMixin
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
    "FilterGateMixin",
    "HeadGateMixin",
    "MatrixMasks",
    "UnitGate",
    "UnitGates",
    "WeightMasks",
    "add_filter_gates",
    "add_head_gates",
    "add_weight_masks",
    "check_masks",
    "gate_columns",
    "has_gates",
    "remove_filter_gates",
    "remove_head_gates",
    "remove_weight_masks",
    "weight_masks_of",
]
