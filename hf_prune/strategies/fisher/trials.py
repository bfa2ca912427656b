"""Which of several cuts is best: each is tried, repair and all, on calibration data that its repair has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ...anatomy import ModelAnatomy, UndoLog
from ...anatomy.layer_calls import run_model
from ...calibration import Batch, CalibrationData, predicted_tokens, without_labels
from ...errors import PruningError
from ...recovery import distillation_loss
from ...scores import evaluating
from ...surgery import apply_plan
from ..base import Cut
from .config import FisherPruningConfig
from .repair import repair_blocks

# Examples that a trial's repair sees, and as many on which it is judged.
TRIAL_EXAMPLES = 256


def best_by_trial(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    cuts: Sequence[Cut],
) -> Cut:
    """The cut whose predictions are closest to the dense model's; the first of equals.

    Args:
        model: the dense model; it is as it was afterwards.
        anatomy, config, data: as for a strategy.
        cuts: without repairs.

    Raises:
        PruningError: fewer than two batches of calibration data for a process, or a model without predictions.
    """
    batches = list(data.take(2 * TRIAL_EXAMPLES))
    fitted, judged = batches[::2], batches[1::2]
    data.agree(lambda: _check_batches(judged))
    distances = []
    for cut in cuts:
        repairs = repair_blocks(model, anatomy, config, data, cut.plan, [], fitted)
        log = apply_plan(model, anatomy, cut.plan, repairs)
        try:
            total = torch.stack([_distance(model, log, batch) for batch in judged]).sum()
        finally:
            log.roll_back()
        distances.append(float(data.sum(total)))
    return min(zip(distances, cuts, strict=True), key=lambda pair: pair[0])[1]


def _check_batches(judged: Sequence[Batch]) -> None:
    if not judged:
        raise PruningError(
            "blend=None chooses by trials on calibration data that the repair has not seen, which needs at least two"
            " batches for every process. Give more data, a smaller batch_size, or a number as blend."
        )


def _distance(model: PreTrainedModel, log: UndoLog, batch: Batch) -> torch.Tensor:
    """KL divergence of the cut model's predictions from the dense model's, summed over a batch."""
    cut = _predictions(model, batch)
    log.swap()
    dense = _predictions(model, batch)
    log.swap()
    valid = predicted_tokens(model, batch)
    parts = []
    for name, wanted in dense.items():
        mask = None
        if valid is not None and wanted.dim() > 2 and valid.shape == wanted.shape[:-1]:
            mask = valid.to(wanted.device)
        parts.append(distillation_loss(cut[name], wanted, 1.0, mask))
    return torch.stack(parts).sum()


def _predictions(model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
    with evaluating(model), torch.no_grad():
        output = run_model(model, without_labels(batch), return_dict=True)
    found = {name: value for name, value in output.items() if "logits" in name and isinstance(value, torch.Tensor)}
    if not found:
        raise PruningError(
            f"{type(model).__name__} makes no predictions that trials could compare: give a number as blend."
        )
    return found
