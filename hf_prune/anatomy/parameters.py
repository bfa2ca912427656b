"""Changes of parameters that a log can take back, wherever their values are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..offloading import ChangedWeights, offload_hook
from .projections import Indices
from .undo import UndoLog


def change_parameter(
    module: nn.Module, name: str, change: Callable[[torch.Tensor], torch.Tensor], log: UndoLog
) -> None:
    """Puts what `change` makes of a parameter in its place.

    Of a parameter that Accelerate keeps elsewhere it is made anew whenever the parameter is loaded.

    Args:
        module: the module that holds the parameter itself.
        name: of the parameter.
        change: makes a new tensor of the old one, which it leaves alone. The shape must not depend on the values: of an
            offloaded parameter it is seen on the meta device.
        log: remembers what was there.
    """
    old = module.get_parameter(name)
    hook = offload_hook(module)
    if hook is not None:
        log.set(hook, "weights_map", ChangedWeights(hook.weights_map, name, change))
    log.set(module, name, nn.Parameter(change(old.detach()), requires_grad=old.requires_grad))


def keep_slices(module: nn.Module, name: str, axis: int, kept: Indices, log: UndoLog) -> None:
    """Keeps the entries `kept` of a parameter along one axis; see `change_parameter`."""

    def change(old: torch.Tensor) -> torch.Tensor:
        return old.index_select(axis, torch.from_numpy(kept).to(old.device))

    change_parameter(module, name, change, log)
