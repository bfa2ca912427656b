"""What pruning did to single weights, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PruningError
from .base import NOT_A_REPORT, Report, check_report, damage_refused
from .sparsity_tables import MatrixSparsity


@dataclass(frozen=True)
class WeightReport(Report):
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

    @property
    def weights(self) -> int:
        """How many weights the pruned matrices have."""
        return sum(matrix.weights for matrix in self.matrices)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WeightReport:
        """The inverse of `to_dict`.

        Raises:
            PruningError: fields are missing or unknown, or hold something else than they should.
        """
        with damage_refused(data):
            matrices = tuple(MatrixSparsity(**row) for row in data["matrices"])
            report = cls(**{**data, "matrices": matrices, "notes": tuple(data.get("notes", ()))})
            counts = ("report", {"parameters": report.parameters})
            check_report(report, (matrix.name for matrix in matrices), [counts])
            for matrix in matrices:
                _check_matrix(matrix)
        return report

    def to_markdown(self) -> str:
        """The summary, and the sparsity by kind of matrix and by layer, as Markdown."""
        from .weight_tables import weight_report_markdown

        return weight_report_markdown(self)

    def plot(self, path: str | Path | None = None) -> Any:
        """A heat map of the sparsity, layer by kind of matrix, as a matplotlib figure; also written to `path`.

        Raises:
            PruningError: matplotlib is not installed, or the report has no matrices.
        """
        from .weight_plots import plot_removed_weights

        return plot_removed_weights(self, path)


def _check_matrix(matrix: MatrixSparsity) -> None:
    """Refuses counts that cannot be."""
    whole = all(type(count) is int for count in (matrix.weights, matrix.removed))
    if not whole or not 0 <= matrix.removed <= matrix.weights or not matrix.weights:
        raise PruningError(
            f"{NOT_A_REPORT}: of {matrix.name}, weights must be a whole number of at least 1 and removed one from 0 to"
            f" weights, got weights={str(matrix.weights)[:80]}, removed={str(matrix.removed)[:80]}."
        )
