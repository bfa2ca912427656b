"""Training a model as it computes in evaluation: without dropout, layer drop or masked features.

A pruned model has less to spare than the dense one, and what it is to learn, the dense model's outputs, has no noise in
it that dropout could keep it from learning by heart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def steady(student: nn.Module, modules: Iterable[nn.Module]) -> Iterator[None]:
    """While `student` is trained, `modules` compute as in evaluation.

    Their modes are set before every forward pass, since a Trainer puts the whole model into training mode in every
    step. Layers that checkpoint their activations do so in training mode only: these stay in it, with the probabilities
    that they drop something with at zero.

    Args:
        student: what the training calls; it stays in training mode itself, so that its hooks know of the training.
        modules: of the student, without those of its adapters.
    """
    inside = [module for module in modules if module is not student]
    layers = [module for module in inside if isinstance(module, GradientCheckpointingLayer)]
    dropped = [{name: value for name, value in vars(layer).items() if _drops(name, value)} for layer in layers]

    def settle(module: nn.Module, *_: Any) -> None:
        for one in inside:
            one.training = False
        for layer in layers:
            layer.training = module.training and bool(layer.gradient_checkpointing)

    handle = student.register_forward_pre_hook(settle)
    for layer, probabilities in zip(layers, dropped, strict=True):
        vars(layer).update(dict.fromkeys(probabilities, 0.0))
    try:
        yield
    finally:
        handle.remove()
        for layer, probabilities in zip(layers, dropped, strict=True):
            vars(layer).update(probabilities)


def _drops(name: str, value: Any) -> bool:
    return "drop" in name and isinstance(value, float)
