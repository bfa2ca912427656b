"""Adam's moments of a parameter as tensors of a state: what an optimizer of our own needs to go on bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def moments_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """A parameter's moments and the number of steps that they rest on.

    Args:
        optimizer: Adam or AdamW; others have none.
        parameter: one of the optimizer's.
        name: what the parameter is called in the state.

    Returns:
        `<name>.exp_avg`, `<name>.exp_avg_sq` and `<name>.step`, tensors of their own on the CPU; nothing before the
        parameter's first step.
    """
    found = optimizer.state.get(parameter, {})
    return {f"{name}.{key}": torch.as_tensor(found[key]).to("cpu", copy=True) for key in _MOMENTS if key in found}


def stored_moments(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """What `moments_of` has put into a state for the parameter of this name, as the optimizer calls it."""
    return {key: tensors[f"{name}.{key}"] for key in _MOMENTS if f"{name}.{key}" in tensors}


def put_moments(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, moments: Mapping[str, torch.Tensor]) -> None:
    """Gives a parameter's moments to its optimizer, as copies on the parameter's device; without any it begins anew.

    Args:
        optimizer: Adam or AdamW.
        parameter: one of the optimizer's.
        moments: from `stored_moments`.
    """
    # The optimizer wants the number of steps on the CPU, wherever the parameter is.
    optimizer.state[parameter] = {
        key: value.to("cpu" if key == "step" else parameter.device, copy=True) for key, value in moments.items()
    }
