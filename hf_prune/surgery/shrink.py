"""Shrinks a model to a plan."""

from __future__ import annotations

from torch import nn

from ..anatomy import ModelAnatomy, UndoLog, cut_block, give_own_tables
from .plan import PruningPlan


def shrink_model(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan) -> UndoLog:
    """Removes every unit that the plan does not keep.

    Gradients and optimizer states of the old parameters are not carried over.

    Args:
        model: the model that `anatomy` describes.
        anatomy: from `describe_model(model)`.
        plan: what stays; validated here, before anything is touched.

    Returns:
        A log that rolls the cut back.
    """
    plan.validate(anatomy)
    log = UndoLog()
    try:
        give_own_tables(model, anatomy.blocks, plan.changed(anatomy), log)
        for block in anatomy.blocks:
            cut_block(model.get_submodule(block.layer), block, plan.units(block), log)
    except BaseException:
        log.roll_back()
        raise
    return log
