"""What `hf-prune inspect` says of single weights that are zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..report import PruningReport, WeightReport
from ..report.build import count_parameters
from ..report.number_text import count_text, share_text
from ..surgery import pruning_of
from ..surgery.weight_metadata import weights_of
from .stored_zeros import stored_zeros

COUNTED = "Counted in the weight files, in every matrix that has zeros; there is no report of this very pruning."


@dataclass(frozen=True)
class WeightInspection:
    """Zeros in a checkpoint.

    Attributes:
        recorded: how many weights were `removed` `of` how many in how many `matrices`, as the config has it.
        report: where they are: as written beside the checkpoint, or as counted in its weights; None where neither is
            to be had.
    """

    recorded: Mapping[str, int]
    report: WeightReport | None

    @property
    def text(self) -> str:
        """What the config says, as a sentence."""
        removed, of = self.recorded["removed"], self.recorded["of"]
        counts = f"{count_text(removed)} of {count_text(of)} weights in {self.recorded['matrices']:,} matrices"
        return f"Set to zero when the model was pruned: {counts} ({share_text(removed, of)})."

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return {"recorded": dict(self.recorded), "report": self.report.to_dict() if self.report else None}


def inspect_weights(
    name: str, model: PreTrainedModel, written: PruningReport | WeightReport | None
) -> WeightInspection | None:
    """What is known of a checkpoint's zeros; None for a model that has lost no single weights.

    Args:
        name: local folder or Hub name.
        model: its modules, without weights.
        written: the report beside it, which counts only if it is of the pruning that the config speaks of.

    Raises:
        PruningError: the metadata, or a weight file, is damaged.
    """
    recorded = weights_of(model.config)
    if recorded is None:
        return None
    sizes = {key: recorded[key] for key in ("removed", "of", "matrices")}
    if isinstance(written, WeightReport) and _sizes(written) == sizes:
        return WeightInspection(sizes, written)
    return WeightInspection(sizes, _counted(name, model))


def _counted(name: str, model: PreTrainedModel) -> WeightReport | None:
    rows = stored_zeros(name)
    if rows is None:
        return None
    data = pruning_of(model.config) or {}
    return WeightReport.from_dict(
        {
            "model_name": name,
            "model_type": model.config.model_type,
            "strategy": data.get("strategy"),
            "parameters": count_parameters(model),
            "matrices": [vars(row) for row in rows],
            "metrics": data.get("metrics") or {},
            "notes": [COUNTED],
        }
    )


def _sizes(report: WeightReport) -> dict[str, int]:
    return {"removed": report.removed, "of": report.weights, "matrices": len(report.matrices)}
