"""What can be put on a model and taken off again."""

from .mixins import FilterGateMixin, HeadGateMixin
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

__all__ = [
    "FilterGateMixin",
    "HeadGateMixin",
    "UnitGate",
    "UnitGates",
    "add_filter_gates",
    "add_head_gates",
    "gate_columns",
    "has_gates",
    "remove_filter_gates",
    "remove_head_gates",
]
