"""One training step of a pruned model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy import weight_of
from tests.small_models import Batch


def train_one_step(model: PreTrainedModel, batch: Batch) -> None:
    """Takes a step and checks that every module that the cut made smaller, but not empty, has learnt something.

    Experts are left out: it may be that no token went to one.
    """
    before = copy.deepcopy(model.state_dict())
    model.train()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    loss_of(model(**batch)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.eval()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    old = copy.deepcopy(model)
    old.load_state_dict(before)
    for block in describe_model(model).blocks:
        new_weight, weight = (weight_of(item.get_submodule(block.layer), block.output) for item in (model, old))
        assert block.units == 0 or block.group or not torch.equal(new_weight, weight), block.key


def loss_of(result: Any) -> torch.Tensor:
    """The model's loss, or something else to train on where it has none."""
    loss: torch.Tensor | None = getattr(result, "loss", None)
    if loss is not None:
        return loss
    generator = torch.Generator().manual_seed(0)
    # A random direction, as the squares of what a norm gives sum up to a constant; scaled, as some outputs are huge,
    # and without what stands for minus infinity.
    finite = [value[value.abs() < 1e30] for value in tensors(result.to_tuple())]
    scaled = [value / value.detach().abs().amax().clamp(min=1) for value in finite]
    return torch.stack([(value * torch.randn(value.shape, generator=generator)).mean() for value in scaled]).sum()


def tensors(value: Any) -> list[torch.Tensor]:
    """Every floating-point tensor in a model's outputs that depends on its weights."""
    if isinstance(value, torch.Tensor):
        return [value] if value.requires_grad else []
    return [found for item in value for found in tensors(item)] if isinstance(value, (tuple, list)) else []
