"""What a model's config says about single weights that are zero, beside the blocks that were cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ..gates import MatrixMasks
from .metadata import FORMAT_VERSION, KEY, pruning_of

WEIGHTS = "weights"


def write_weight_metadata(config: PreTrainedConfig, strategy: Mapping[str, Any] | None, masks: MatrixMasks) -> None:
    """Puts the number of removed weights under the config's `pruning` key, and who removed them.

    Args:
        config: the model's; what it says about blocks stays.
        strategy: the strategy's name and settings; None leaves those that are there.
        masks: what is removed.
    """
    data = dict(pruning_of(config) or {"format": FORMAT_VERSION, "library": "hf_prune", "blocks": {}})
    total = sum(mask.numel() for mask in masks.masks)
    data[WEIGHTS] = {"removed": masks.removed_count, "of": total, "matrices": len(masks.masks)}
    if strategy is not None:
        data["strategy"] = dict(strategy)
    setattr(config, KEY, data)


def weights_of(config: PreTrainedConfig) -> Mapping[str, Any] | None:
    """What a config says about removed weights, or None where none were."""
    data = pruning_of(config)
    found = data.get(WEIGHTS) if data is not None else None
    return found if found and found["removed"] else None
