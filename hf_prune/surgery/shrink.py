"""Shrinks a model to a plan."""

from __future__ import annotations

from torch import nn

from ..anatomy import ModelAnatomy, UndoLog, cut_model, give_own_tables
from .layers import LayerRemoval
from .own_configs import give_own_configs
from .plan import PruningPlan


def shrink_model(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan) -> UndoLog:
    """Removes every unit that the plan does not keep, and every layer that it removes.

    Gradients and optimizer states of the old parameters are not carried over. The model's configs become copies of its
    own, so that another model with the same config object stays as it is. Where layers are removed, the ones after
    them are renumbered: `anatomy` does not describe the model any more.

    Args:
        model: the model that `anatomy` describes.
        anatomy: from `describe_model(model)`.
        plan: what stays; validated here, before anything is touched.

    Returns:
        A log that rolls the cut back.
    """
    plan.validate(anatomy)
    staying = plan.staying(anatomy)
    log = UndoLog()
    try:
        give_own_configs(model, log)
        removal = LayerRemoval.of(model, anatomy, plan)
        give_own_tables(model, staying, plan.changed(anatomy), log)
        cut_model(model, staying, {block.key: plan.units(block) for block in staying}, log)
        removal.apply(log)
    except BaseException:
        log.roll_back()
        raise
    return log
