"""What a model's own loss is about: of which kind its outputs are, which of them count, what they are divided by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..calibration import predicted_tokens
from ..rows import IGNORED
from ..scores.model_labels import Prediction, is_causal, kind_of_prediction


def kind_of_outputs(
    model: PreTrainedModel, name: str, outputs: torch.Tensor, labels: Any
) -> Prediction | Literal["replaced"]:
    """What the outputs of a name stand for.

    "replaced" are those of discriminators, `[examples, tokens]`, each of which is a label of its own.
    """
    if name != "logits":
        return "classes"
    if _pretrains(model) and outputs.dim() == 2:
        return "replaced"
    return kind_of_prediction(model, labels, outputs.shape[-1])


def counted_outputs(model: PreTrainedModel, outputs: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Which rows of `[..., classes]` count in the loss, or without labels are no padding; None for all."""
    if _is_ctc(model):
        return _frames_heard(model, outputs, inputs)
    # Whether a token was replaced is told of all of them.
    if inputs.get("labels") is None or (_pretrains(model) and outputs.shape[-1] == 1):
        counted = predicted_tokens(model, dict(inputs))
        counted = _next(counted) if counted is not None and is_causal(model) else counted
    else:
        labels = _targets(model, inputs)
        counted = None if labels is None else labels != IGNORED
    fits = counted is not None and counted.dim() > 1 and counted.shape == outputs.shape[:-1]
    return counted.to(outputs.device) if counted is not None and fits else None


@torch.no_grad()
def scale_of_loss(model: PreTrainedModel, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> torch.Tensor:
    """What a mean over the rows that count is multiplied with to be on the scale of the model's own loss.

    A Trainer that accumulates gradients says how many labels there are in the whole batch. Some losses are sums that
    are divided by that, others are means whatever it says: it is the one that the loss is closer to.
    """
    logits, one = outputs.get("logits"), torch.tensor(1.0)
    if not isinstance(logits, torch.Tensor):
        return one
    if _is_ctc(model) and getattr(model.config, "ctc_loss_reduction", "mean") == "sum":
        heard = _frames_heard(model, logits, inputs)
        return torch.tensor(logits[..., 0].numel()) if heard is None else heard.sum()
    loss, labels, items = outputs.get("loss"), _targets(model, inputs), inputs.get("num_items_in_batch")
    if loss is None or items is None or labels is None or labels.shape != logits.shape[:-1]:
        return one
    share = (labels != IGNORED).sum() / items
    mean = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED)
    ratio = (loss / mean).log()
    return torch.where((ratio - share.log()).abs() < ratio.abs(), share, torch.ones_like(share))


def _targets(model: PreTrainedModel, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """The labels, each where the model predicts it; None where there are none, or none that are classes."""
    labels = inputs.get("labels")
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        return None
    return _next(labels, IGNORED) if labels.dim() > 1 and is_causal(model) else labels


def _next(values: torch.Tensor, last: int = 0) -> torch.Tensor:
    """At each position the value of the next."""
    return F.pad(values, (0, 1), value=last)[..., 1:]


def _pretrains(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith("ForPreTraining")


def _is_ctc(model: PreTrainedModel) -> bool:
    """Whether the labels are a text, shorter than the outputs, which are for frames of sound."""
    return type(model).__name__.endswith("ForCTC")


def _frames_heard(model: PreTrainedModel, logits: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Which frames of `[examples, frames, classes]` are no padding; None for all."""
    mask, frames_of = inputs.get("attention_mask"), getattr(model, "_get_feature_vector_attention_mask", None)
    return None if mask is None or frames_of is None else frames_of(logits.shape[1], mask).bool().to(logits.device)
