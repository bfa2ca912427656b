"""What pruning did to single weights, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .sparsity_tables import MatrixSparsity


@dataclass(frozen=True)
class WeightReport:
    """Which weights were set to zero; no matrix is smaller for it.

    Attributes:
        model_name: name or path of the dense model.
        model_type: its family.
        strategy: the strategy's name, under "strategy", and settings, as `PruningConfig.to_dict` gives them.
        parameters: all parameters of the model.
        matrices: the pruned ones.
        metrics: `{"dense": {...}, "pruned": {...}}` on the evaluation data, empty without any.
        stages: seconds spent in each stage.
        notes: what a reader should know.
    """

    model_name: str
    model_type: str
    strategy: Mapping[str, Any]
    parameters: int
    matrices: tuple[MatrixSparsity, ...]
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def removed(self) -> int:
        """How many weights were removed."""
        return sum(matrix.removed for matrix in self.matrices)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return json.loads(json.dumps(asdict(self)))
