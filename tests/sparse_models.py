"""Models with many zeros, and what is in the checkpoints that they are saved to."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel


def made_sparse(model: PreTrainedModel, share: float = 0.9) -> PreTrainedModel:
    """Sets a random share of every matrix to zero, embeddings too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) >= share)
    return model


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in the weight files of a folder, as it is there."""
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def is_packed_folder(folder: Path) -> bool:
    return any(name.endswith("_bitmask") for name in stored(folder))


def assert_same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name
