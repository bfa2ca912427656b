"""What a Trainer leaves on a model besides its weights: mixed precision, hooks, activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# Attributes that Accelerate, the Trainer and activation checkpointing put on modules.
_PUT_ON = (
    "forward",
    "_original_forward",
    "gradient_checkpointing",
    "_gradient_checkpointing_func",
    "_require_grads_hook",
    "_require_grads_hooks",
    "_is_accelerate_prepared",
    "neftune_noise_alpha",
)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@contextmanager
def traces_removed(model: nn.Module) -> Iterator[None]:
    """At the end, whatever happened meanwhile, modules compute as they did before: with the hooks that they had."""
    modules = list(model.modules())
    before = [{name: vars(module)[name] for name in _PUT_ON if name in vars(module)} for module in modules]
    hooks = [[set(getattr(module, kind)) for kind in _HOOKS] for module in modules]
    try:
        yield
    finally:
        for module, known, had in zip(modules, before, hooks, strict=True):
            for name in _PUT_ON:
                vars(module).pop(name, None)
            vars(module).update(known)
            for kind, keys in zip(_HOOKS, had, strict=True):
                found = getattr(module, kind)
                for key in set(found) - keys:
                    del found[key]
