"""PEFT models with static masks."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model

from hf_prune import StaticMaskConfig
from hf_prune.adapters.static_mask.masks import AdapterMasks
from tests.training.runs import BERT, bert

BATCH = BERT.batch()


def config(**settings: Any) -> StaticMaskConfig:
    return StaticMaskConfig(**{"sparsity": 0.7, "score_learning_rate": 0.05, "task_type": "SEQ_CLS"} | settings)


def masked(model: Any = None, **settings: Any) -> PeftModel:
    return get_peft_model(bert() if model is None else model, config(**settings)).eval()


def set_random_masks(model: PeftModel, adapter: str = "default", seed: int = 0) -> dict[str, torch.Tensor]:
    """Gives an adapter masks that keep about half of the weights; returns them by the names of the base model."""
    generator = torch.Generator().manual_seed(seed)
    masks = AdapterMasks(model.get_base_model(), adapter)
    masks.set([torch.rand(mask.shape, generator=generator) > 0.5 for mask in masks.masks])
    return {matrix.name: mask.clone() for matrix, mask in zip(masks.matrices, masks.masks, strict=True)}


def logits(model: Any, batch: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(**(batch or BATCH)).logits
    return result


def with_zeros(model: Any, masks: dict[str, torch.Tensor]) -> Any:
    """A plain model, its weights multiplied by masks."""
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model
