"""What cannot be done with a model that FSDP2 has sharded is refused before anything is done."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from hf_prune import (
    L0PruningConfig,
    MagnitudePruningConfig,
    PruningConfig,
    PruningError,
    SnipPruningConfig,
    prune_model,
    start_pruning,
)
from tests.distributed.small_bert import small_model

REFUSED = [
    SnipPruningConfig(params=0.5, iterations=1),
    L0PruningConfig(flops=0.5),
    MagnitudePruningConfig(flops=0.5),
]


@pytest.fixture
def sharded() -> torch.nn.Module:
    """As `fully_shard` leaves a model, but for its parameters."""
    model = small_model()
    model.__class__ = type("Sharded", (FSDPModule, type(model)), {})
    return model


@pytest.mark.parametrize("config", REFUSED, ids=lambda config: config.strategy)
def test_training_that_needs_whole_matrices(sharded: torch.nn.Module, config: PruningConfig) -> None:
    before = copy.deepcopy(sharded.state_dict())
    with pytest.raises(PruningError, match=r"sharded.*Train with DDP"):
        start_pruning(sharded, config, steps=100)
    assert all(torch.equal(value, before[name]) for name, value in sharded.state_dict().items())


def test_heads_and_filters_at_one_go(sharded: torch.nn.Module) -> None:
    with pytest.raises(PruningError, match=r"FSDP2.*prune it before that"):
        prune_model(sharded, MagnitudePruningConfig(flops=0.5))
