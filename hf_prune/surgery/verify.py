"""Proof that a cut did what its masks said: the masked dense model and the shrunk one give the same outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy, UndoLog
from ..anatomy.layer_calls import run_plainly
from ..calibration import Batch, without_labels
from ..errors import PruningError
from ..gates import UnitGates, check_bare
from ..offloading import device_of
from ..recovery import Repair
from ..recovery.repaired_weights import put_repair
from ..scores import evaluating
from .layers import layers_passed_over
from .plan import PruningPlan
from .shrink import shrink_model

# Largest accepted difference relative to the outputs' largest value; the sums of a wide layer are rounded in another
# order once columns are gone.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Outputs are compared in float64, which a vocabulary for every token would make large.
NUMBERS_AT_ONCE = 2**22


def apply_plan(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    plan: PruningPlan,
    repairs: Mapping[str, Repair] | None = None,
    batch: Batch | None = None,
) -> UndoLog:
    """Shrinks a model to a plan, puts the repaired weights in, and checks the result.

    Args:
        model: the dense model; changed in place, or left as it was if anything fails.
        anatomy: from `describe_model(model)`.
        plan: what stays.
        repairs: new output projections on the kept units, by block key; those in removed layers go with them.
        batch: a calibration batch on which masked and shrunk outputs are compared; None skips the comparison.

    Returns:
        A log that rolls everything back.

    Raises:
        PruningError: the plan does not fit, or the outputs differ; the model is as it was.
    """
    check_bare(model)
    plan.validate(anatomy)
    layers = {block.key: model.get_submodule(block.layer) for block in plan.staying(anatomy)}
    repairs = repairs or {}
    repaired = [key for key in repairs if key in layers]
    with torch.no_grad(), evaluating(model):
        expected = None if batch is None else _masked_outputs(model, anatomy, plan, repairs, repaired, batch)
        log = UndoLog()
        try:
            log = shrink_model(model, anatomy, plan)
            for key in repaired:
                put_repair(layers[key], anatomy[key], repairs, log)
            if expected is not None and batch is not None:
                _compare(expected, outputs(model, batch))
        except BaseException:
            log.roll_back()
            raise
    return log


def _masked_outputs(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    plan: PruningPlan,
    repairs: Mapping[str, Repair],
    repaired: Sequence[str],
    batch: Batch,
) -> list[torch.Tensor]:
    """Outputs of the dense model with repaired weights, gates closed on what goes, and removed layers passed over."""
    log = UndoLog()
    device = device_of(model)
    masks = [mask.to(device) for mask in plan.masks(anatomy.blocks)]
    try:
        for key in repaired:
            block = anatomy[key]
            columns = block.columns_of(plan.units(block))
            put_repair(model.get_submodule(block.layer), block, repairs, log, columns)
        with UnitGates(model, anatomy.blocks, masks), layers_passed_over(model, anatomy, plan):
            return outputs(model, batch)
    finally:
        log.roll_back()


def outputs(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """Every floating-point output of a model for one batch, without labels or caches."""
    return run_plainly(model, without_labels(batch))


def _compare(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> None:
    for masked, shrunk in zip(expected, actual, strict=True):
        difference, largest = _distance(masked, shrunk)
        allowed = TOLERANCES.get(masked.dtype, 1e-1) * max(1.0, largest)
        if not difference <= allowed:
            raise PruningError(
                f"The shrunk model's outputs differ from the masked model's by {difference:.3g}, where at most"
                f" {allowed:.3g} is accepted. The cut was rolled back: the family's layout in"
                " hf_prune/anatomy/families.py does not describe this model correctly, or its outputs are not"
                " finite. Please report it with the model's config."
            )


def _distance(masked: torch.Tensor, shrunk: torch.Tensor) -> tuple[float, float]:
    """The largest difference of two outputs, and the largest value of the first; NaN stays NaN."""
    pairs = zip(masked.flatten().split(NUMBERS_AT_ONCE), shrunk.flatten().split(NUMBERS_AT_ONCE), strict=True)
    found = []
    for one, other in pairs:
        # Values that stand for "impossible" (a mask's lowest number) say nothing about the size of the others.
        usual = one.double().abs() < torch.finfo(one.dtype).max / 2
        found.append([_largest(one.double() - other.double(), one != other), _largest(one.double(), usual)])
    difference, largest = torch.tensor(found).amax(0).tolist()
    return difference, largest


def _largest(values: torch.Tensor, where: torch.Tensor) -> float:
    """The largest absolute value among the chosen ones, 0 if none is; NaN stays NaN."""
    chosen = values[where]
    return float(chosen.abs().max()) if chosen.numel() else 0.0
