"""Training arguments that change how a step is made: pruning goes with all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_prune import MagnitudePruningConfig, MovementPruningConfig, PruningConfig
from tests.training.runs import assert_close, assert_same, bert, is_clean, kept, train, weights

CONFIGS = {
    "magnitude": MagnitudePruningConfig(sparsity=0.6, frequency=1),
    # After Adam's first step all scores are alike but for rounding; so the choice begins later.
    "movement": MovementPruningConfig(sparsity=0.6, begin=0.5, end=0.9),
}
CHECKPOINTING = {"activation_checkpointing": True}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request: pytest.FixtureRequest) -> PruningConfig:
    return request.param


@pytest.mark.parametrize(
    "settings",
    [
        {"max_grad_norm": 0.01},
        {"max_grad_norm": 0.0, "optim": "sgd", "weight_decay": 0.1},
        {"bf16": True},
        {"label_smoothing_factor": 0.1},
        {"lr_scheduler_type": "cosine", "warmup_steps": 2},
        {"neftune_noise_alpha": 5},
        {"optim": "adafactor"},
        {"eval_strategy": "no", "logging_strategy": "no", "disable_tqdm": False},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_prunes_exactly_and_leaves_a_clean_model(
    tmp_path: Path, settings: dict[str, Any], config: PruningConfig
) -> None:
    model = bert()
    before = weights(model)
    result = train(model, tmp_path, config, **settings).result
    masks = {name: mask for name, mask in kept(model).items() if name in result.plan.masks}
    assert_same(masks, dict(result.plan.masks))
    for name, mask in masks.items():
        assert mask.numel() - int(mask.count_nonzero()) == round(0.6 * mask.numel()), name
        assert not torch.equal(model.get_parameter(name)[mask], before[name][mask]), f"{name} has not been trained"
    assert is_clean(model)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}, {}),
        (CHECKPOINTING, {}),
        (CHECKPOINTING | {"activation_checkpointing_kwargs": {"use_reentrant": True}}, {}),
        ({"torch_compile": True, "torch_compile_backend": "aot_eager"}, {"num_hidden_layers": 1}),
    ],
    ids=["accumulation", "checkpointing", "reentrant_checkpointing", "compile"],
)
def test_is_the_same_as_without(
    tmp_path: Path, settings: dict[str, Any], changes: dict[str, Any], config: PruningConfig
) -> None:
    """Accumulated gradients are those of the bigger batch, and so on: the same masks, and the same weights."""
    plain, other = bert(**changes), bert(**changes)
    train(plain, tmp_path, config, optim="sgd")
    train(other, tmp_path, config, optim="sgd", **settings)
    assert_same(kept(plain), kept(other))
    assert_close(weights(plain), weights(other))


def test_gradients_are_clipped_as_by_the_trainer_alone(tmp_path: Path) -> None:
    """Held zeros have no gradient, so they take no part in the norm: clipping is that of the masked model."""
    model, twin = bert(), bert()
    callback = train(model, tmp_path, MagnitudePruningConfig(sparsity=0.5, end=0.0, frequency=1000), max_grad_norm=0.1)
    with torch.no_grad():
        for name, mask in callback.result.plan.masks.items():
            parameter = twin.get_parameter(name)
            parameter.mul_(mask)
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
    train_plainly(twin, tmp_path, max_grad_norm=0.1)
    assert_close(weights(model), weights(twin), 0.0)


def train_plainly(model: torch.nn.Module, folder: Path, **settings: Any) -> None:
    from tests.training.runs import trainer_of

    trainer_of(model, folder, **settings).train()
