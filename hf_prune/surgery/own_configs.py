"""Configs that belong to one model alone."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ..anatomy import UndoLog
from ..anatomy.cut_forward import ConfigView


def give_own_configs(model: nn.Module, log: UndoLog) -> None:
    """Replaces every config that a module of the model holds by a copy; what was one object stays one.

    A cut writes to configs, and a model that was built from the same config object is not to notice.
    """
    copies: dict[int, Any] = {}
    for module in model.modules():
        for name, value in tuple(vars(module).items()):
            if isinstance(value, (PreTrainedConfig, ConfigView)):
                log.set(module, name, copy.deepcopy(value, copies))
