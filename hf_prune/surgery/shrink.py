"""Shrinks a model to a plan."""

from __future__ import annotations

from torch import nn

from ..anatomy import ModelAnatomy, UndoLog, cut_model, give_own_tables
from .layers import LayerRemoval
from .plan import PruningPlan


def shrink_model(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan) -> UndoLog:
    """Removes every unit that the plan does not keep, and every layer that it removes.

    Gradients and optimizer states of the old parameters are not carried over. Where layers are removed, the ones
    after them are renumbered: `anatomy` does not describe the model any more.

    Args:
        model: the model that `anatomy` describes.
        anatomy: from `describe_model(model)`.
        plan: what stays; validated here, before anything is touched.

    Returns:
        A log that rolls the cut back.
    """
    plan.validate(anatomy)
    removal = LayerRemoval.of(model, anatomy, plan)
    staying = plan.staying(anatomy)
    log = UndoLog()
    try:
        give_own_tables(model, staying, plan.changed(anatomy), log)
        cut_model(model, staying, {block.key: plan.units(block) for block in staying}, log)
        removal.apply(log)
    except BaseException:
        log.roll_back()
        raise
    return log
