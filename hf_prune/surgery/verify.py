"""Proof that a cut did what its masks said: the masked dense model and the shrunk one give the same outputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy, UndoLog, linear_at, stored, weight_of
from ..anatomy.layer_calls import run_plainly
from ..calibration import Batch, without_labels
from ..errors import PruningError
from ..gates import UnitGates, check_bare
from ..recovery import Repair
from ..scores import evaluating
from .layers import layers_passed_over
from .plan import PruningPlan
from .shrink import shrink_model

# Largest accepted difference relative to the outputs' largest value; the sums of a wide layer are rounded in another
# order once columns are gone.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


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
    repairs = {key: repair for key, repair in (repairs or {}).items() if key in layers}
    with torch.no_grad(), evaluating(model):
        expected = None if batch is None else _masked_outputs(model, anatomy, plan, repairs, batch)
        log = UndoLog()
        try:
            log = shrink_model(model, anatomy, plan)
            for key, repair in repairs.items():
                _install(layers[key], anatomy[key], repair, log)
            if expected is not None and batch is not None:
                _compare(expected, outputs(model, batch))
        except BaseException:
            log.roll_back()
            raise
    return log


def _install(layer: nn.Module, block: Block, repair: Repair, log: UndoLog) -> None:
    """Repaired weights replace the old parameters rather than overwriting them, so that a roll-back is possible."""
    projection = linear_at(layer, block.output)
    for name, value in (("weight", stored(repair.weight, block.output)), ("bias", repair.bias)):
        if value is not None:
            old = getattr(projection, name)
            log.set(projection, name, nn.Parameter(value.detach().to(old), requires_grad=old.requires_grad))


def _masked_outputs(
    model: PreTrainedModel, anatomy: ModelAnatomy, plan: PruningPlan, repairs: Mapping[str, Repair], batch: Batch
) -> list[torch.Tensor]:
    """Outputs of the dense model with repaired weights, gates closed on what goes, and removed layers passed over."""
    log = UndoLog()
    masks = [mask.to(model.device) for mask in plan.masks(anatomy.blocks)]
    try:
        for key, repair in repairs.items():
            block = anatomy[key]
            layer = model.get_submodule(block.layer)
            _install(layer, block, _scattered(repair, block, plan, layer), log)
        with UnitGates(model, anatomy.blocks, masks), layers_passed_over(model, anatomy, plan):
            return outputs(model, batch)
    finally:
        log.roll_back()


def _scattered(repair: Repair, block: Block, plan: PruningPlan, layer: nn.Module) -> Repair:
    """The repaired weight at full width; the removed units keep their old columns, which their gates silence."""
    weight = weight_of(layer, block.output).detach().clone()
    weight[:, block.columns_of(plan.units(block)).to(weight.device)] = repair.weight.to(weight)
    return Repair(weight, repair.bias)


def outputs(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """Every floating-point output of a model for one batch, without labels or caches."""
    return run_plainly(model, without_labels(batch))


def _largest(values: torch.Tensor, where: torch.Tensor) -> float:
    """The largest absolute value among the chosen ones, 0 if none is; NaN stays NaN."""
    chosen = values[where]
    return float(chosen.abs().max()) if chosen.numel() else 0.0


def _compare(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> None:
    for masked, shrunk in zip(expected, actual, strict=True):
        difference = _largest(masked.double() - shrunk.double(), masked != shrunk)
        # Values that stand for "impossible" (a mask's lowest number) say nothing about the size of the others.
        usual = masked.double().abs() < torch.finfo(masked.dtype).max / 2
        allowed = TOLERANCES.get(masked.dtype, 1e-1) * max(1.0, _largest(masked.double(), usual))
        if not difference <= allowed:
            raise PruningError(
                f"The shrunk model's outputs differ from the masked model's by {difference:.3g}, where at most"
                f" {allowed:.3g} is accepted. The cut was rolled back: the family's layout in"
                " hf_prune/anatomy/families.py does not describe this model correctly, or its outputs are not"
                " finite. Please report it with the model's config."
            )
