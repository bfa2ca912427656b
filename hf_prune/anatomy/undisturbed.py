"""Running a model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and a private random state; both are restored, and so is what the model changes in itself.

    Some models exchange modules while they run: BigBird drops its sparse attention for good where texts are short.
    """
    before = [(module, _held(module)) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices):
            model.eval()
            yield
    finally:
        for module, held in before:
            _restore(module, held)


def _held(module: nn.Module) -> dict[str, Any]:
    """A module's attributes, with what is in its dictionaries: parameters, buffers, modules and hooks."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(module).items()}


def _restore(module: nn.Module, held: dict[str, Any]) -> None:
    for name in set(vars(module)) - set(held):
        del vars(module)[name]
    for name, value in held.items():
        now = vars(module).get(name)
        if isinstance(value, dict) and isinstance(now, dict):
            now.clear()
            now.update(value)
        else:
            vars(module)[name] = value
