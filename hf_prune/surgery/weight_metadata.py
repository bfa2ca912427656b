"""What a model's config says about single weights that are zero, beside the blocks that were cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..anatomy import default_matrices
from ..gates import MatrixMasks
from ..offloading import named_tensors
from .metadata import KEY, pruning_of, pruning_or_new

WEIGHTS = "weights"


def write_weight_metadata(config: PreTrainedConfig, strategy: Mapping[str, Any], masks: MatrixMasks) -> None:
    """Puts the number of removed weights under the config's `pruning` key, and who removed them.

    Args:
        config: the model's; what it says about blocks stays.
        strategy: the strategy's name and settings.
        masks: what is removed.
    """
    parameters = [matrix.parameter for matrix in masks.matrices]
    own = {WEIGHTS: _entry(masks.removed_count, parameters), "strategy": dict(strategy)}
    setattr(config, KEY, pruning_or_new(config) | own)


def count_zeros(model: PreTrainedModel) -> dict[str, int]:
    """How many single weights are zero in the matrices that are pruned by default, as metadata says it."""
    matrices = default_matrices(model)
    names = {matrix.name for matrix in matrices}
    values = (tensor for name, tensor in named_tensors(model) if name in names)  # one at a time, where they are read
    removed = sum(tensor.numel() - int(tensor.count_nonzero()) for tensor in values)
    return _entry(removed, [matrix.parameter for matrix in matrices])


def _entry(removed: int, matrices: Sequence[torch.Tensor]) -> dict[str, int]:
    return {"removed": removed, "of": sum(matrix.numel() for matrix in matrices), "matrices": len(matrices)}


def weights_of(config: PreTrainedConfig) -> Mapping[str, Any] | None:
    """What a config says about removed weights, or None where none were."""
    data = pruning_of(config)
    found = data.get(WEIGHTS) if data is not None else None
    return found if found and found["removed"] else None
