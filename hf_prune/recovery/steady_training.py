"""Training a model as it computes in evaluation: without dropout, layer drop or masked features.

A pruned model has less to spare than the dense one, and what it is to learn, the dense model's outputs, has no noise in
it that dropout could keep it from learning by heart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def steady(student: nn.Module, modules: Iterable[nn.Module]) -> Iterator[None]:
    """While `student` is trained, `modules` compute as in evaluation.

    Their modes are set before every forward pass, since a Trainer puts the whole model into training mode in every
    step. Modules that checkpoint their activations stay in training mode, which they do that in; what is inside them
    does not.

    Args:
        student: what the training calls; it stays in training mode itself, so that its hooks know of the training.
        modules: of the student, without those of its adapters.
    """
    inside = [module for module in modules if module is not student]

    def settle(module: nn.Module, *_: Any) -> None:
        for one in inside:
            one.training = module.training and bool(getattr(one, "gradient_checkpointing", False))

    handle = student.register_forward_pre_hook(settle)
    try:
        yield
    finally:
        handle.remove()
