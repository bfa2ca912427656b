"""What a model card says of a model that has lost single weights."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ..surgery.label_words import has_label_words
from ..surgery.metadata import pruned_configs
from ..surgery.weight_metadata import weights_of
from .number_text import count_text, share_text
from .weight_report import WeightReport
from .weight_tables import kind_markdown, layer_markdown, weight_summary_markdown

SPEED = (
    "Zeros alone make a model neither faster nor smaller in memory: its matrices have the shapes they had, and dense"
    " kernels multiply zeros like any other number. They pay where files or kernels leave them out."
)


def weight_card_text(report: WeightReport, model: PreTrainedModel | None, packed: bool) -> dict[str, Any]:
    """The variables of `weight_card_template.md` that no other card has.

    Args:
        report: what was done.
        model: the pruned model, if it is at hand.
        packed: whether its matrices are stored in the bitmask format.
    """
    share = share_text(report.removed, report.weights)
    whole = share_text(report.removed, report.parameters)
    counts = f"{count_text(report.removed)} of the {count_text(report.weights)}"
    matrices = "1 matrix" if len(report.matrices) == 1 else f"{len(report.matrices):,} matrices"
    return {
        "removed": f"{counts} weights in {matrices} removed ({share}; {whole} of the whole model)",
        "summary": weight_summary_markdown(report),
        "kinds": kind_markdown(report),
        "layers": layer_markdown(report),
        "packed": packed,
        "reason": _reason(model, packed),
        "holder": _holder(report, model),
    }


def _reason(model: PreTrainedModel | None, packed: bool) -> str | None:
    """Why hf_prune has to be imported to load the checkpoint, if it has to be."""
    reasons = []
    if packed:
        reasons.append("read the packed weights")
    if model is not None and _is_cut(model):
        reasons.append("build the pruned shapes")
    if model is not None and has_label_words(model.config):
        reasons.append("build the head, which scores label words")
    return f"lets transformers {' and '.join(reasons)}" if reasons else None


def _is_cut(model: PreTrainedModel) -> bool:
    """Whether heads, filters or layers have been cut out of a model, too."""
    return any(data["blocks"] or data.get("layers") for _, data in pruned_configs(model))


def _holder(report: WeightReport, model: PreTrainedModel | None) -> dict[str, str] | None:
    """The callback that holds the zeros; without this library's metadata it has to be told to."""
    if not report.removed:
        return None
    if model is None or weights_of(model.config) is not None:
        return {"names": "PruningCallback", "call": "PruningCallback()"}
    return {"names": "HoldPruningConfig, PruningCallback", "call": "PruningCallback(HoldPruningConfig())"}
