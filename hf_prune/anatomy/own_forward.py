"""A `forward` of one module's own, in place of its class's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ..offloading import forward_name
from .undo import UndoLog

_REPLICATE = "_replicate_for_data_parallel"


def set_forward(module: nn.Module, function: Callable[..., Any], log: UndoLog) -> None:
    """Makes `function(module, ...)` the module's `forward`.

    A bound method in the module's attributes would do, but is looked up by name when the module is pickled and read
    again, and `nn.DataParallel` would call it on the module that its replicas are of.
    """
    log.set(module, forward_name(module), partial(function, module))
    log.set(module, _REPLICATE, partial(_replicated, module))


def own_forward(module: nn.Module) -> Callable[..., Any] | None:
    """The function that `set_forward` was given; None where the module has no such `forward`."""
    found: Callable[..., Any] | None = getattr(module.__dict__.get(forward_name(module)), "func", None)
    return found


def _replicated(module: Any) -> Any:
    """A replica whose own functions are about the replica."""
    replica = type(module)._replicate_for_data_parallel(module)
    for name, value in module.__dict__.items():
        if isinstance(value, partial) and value.args == (module,):
            replica.__dict__[name] = partial(value.func, replica)
    return replica
