"""Learning rates that fall from layer to layer, and the l1 term, against optimizers that do the same by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_prune import SnipPruningConfig, describe_model, start_pruning
from hf_prune.strategies.snip.layer_rates import SlowerLayers, layer_factors
from hf_prune.strategies.snip.shrinkage import shrink
from tests.family_models import main_head
from tests.training.runs import BERT, assert_close, bert, weights

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, weight_decay=0.1),
    # The gradient of a key's bias is nothing but rounding, which a small eps would blow up.
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1, eps=1e-2),
}


def factors_of(model: PreTrainedModel, decay: float = 0.5) -> dict[str, float]:
    return layer_factors(model, describe_model(model), decay)


def train(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Four steps with a schedule; some parameters get no gradient in some of them."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 5)
    for step in range(4):
        model(**BERT.batch(step)).loss.backward()
        if step == 2:
            model.get_parameter("bert.encoder.layer.0.output.dense.weight").grad = None
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_parameter_groups(name: str) -> None:
    """Bit for bit but for rounding: a real group per parameter, with its own learning rate."""
    slowed, grouped, plain = bert(), bert(), bert()
    factors = factors_of(slowed)
    optimizer = OPTIMIZERS[name](slowed.parameters())
    slower = SlowerLayers(slowed, factors)
    optimizer.register_step_pre_hook(lambda *unused: slower.before_step())
    optimizer.register_step_post_hook(lambda *unused: slower.after_step())
    train(slowed, optimizer)

    groups: list[dict[str, Any]] = [{"params": [parameter]} for parameter in grouped.parameters()]
    other = OPTIMIZERS[name](groups)
    for group, (key, _) in zip(other.param_groups, grouped.named_parameters(), strict=True):
        group["lr"] *= factors.get(key, 1.0)
    train(grouped, other)
    assert_close(weights(slowed), weights(grouped), 1e-6)

    train(plain, OPTIMIZERS[name](plain.parameters()))
    table = "bert.embeddings.word_embeddings.weight"
    assert not torch.allclose(weights(plain)[table], weights(grouped)[table], atol=1e-4)


def test_factors_of_a_classifier() -> None:
    model = bert()
    factors = factors_of(model)
    for name, _ in model.named_parameters():
        if name.startswith("bert.embeddings."):
            expected = 0.125
        elif name.startswith("bert.encoder.layer."):
            expected = 0.5 ** (2 - int(name.split(".")[3]))
        else:
            expected = 1.0
        assert factors.get(name, 1.0) == expected, name
    assert set(factors) < {name for name, _ in model.named_parameters()}
    assert 1.0 not in factors.values()
    assert factors_of(model, 1.0) == {}


def test_factors_of_two_stacks_with_a_common_table() -> None:
    model = main_head("t5").model()
    factors = factors_of(model)
    for stack in ("encoder", "decoder"):
        found = {factors.get(name, 1.0) for name, _ in model.named_parameters() if name.startswith(f"{stack}.block.0")}
        assert found == {0.5}, "also of the position bias, which is a table inside the first layer"
        assert not any(name.startswith(f"{stack}.block.1") for name in factors)
        assert f"{stack}.final_layer_norm.weight" not in factors
    assert factors["shared.weight"] == 0.25


def test_tables_beside_the_layers() -> None:
    model = main_head("gpt2").model()
    factors = factors_of(model)
    assert factors["transformer.wte.weight"] == factors["transformer.wpe.weight"] == 0.125
    assert not any("ln_f" in name for name in factors)


def test_shrinking_is_soft_thresholding() -> None:
    weight = nn.Parameter(torch.tensor([[0.5, -0.5, 0.1], [-0.1, 0.05, 0.0]]))
    shrink(weight, 0.1)
    expected = torch.tensor([[0.4, -0.4, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(weight.detach(), expected, atol=1e-7)
    shrink(weight, 0.0)
    assert torch.allclose(weight.detach(), expected, atol=1e-7)


def test_shrinking_minimises_what_it_is_the_proximal_step_of() -> None:
    """½(x − w)² + amount · |x| has its minimum there."""
    weights, grid = torch.linspace(-1, 1, 41), torch.linspace(-1, 1, 4001)
    shrunk = weights.clone()
    shrink(shrunk, 0.3)
    values = 0.5 * (grid - weights[:, None]) ** 2 + 0.3 * grid.abs()
    assert torch.allclose(shrunk, grid[values.argmin(1)], atol=1e-3)


GATED = {
    "feed_forward": ["intermediate.dense", "output.dense"],
    "heads": [f"attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")],
}


@pytest.mark.parametrize("units", GATED)
def test_the_l1_term_is_on_the_weights_of_gated_sublayers(units: str) -> None:
    """At the learning rate of their layers; without gradients and decay nothing else changes them."""
    model = bert()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    config = SnipPruningConfig(params=0.9, iterations=1, units=units, l1=0.1, layer_rate_decay=0.5)
    pruner = start_pruning(model, config, 6, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    pruner.abandon()
    amounts = {
        f"bert.encoder.layer.{layer}.{name}.weight": 0.1 * 0.5 * 0.5 ** (2 - layer)
        for layer in range(3)
        for name in GATED[units]
    }
    for name, value in weights(model).items():
        amount = amounts.pop(name, None)
        expected = before[name] if amount is None else nn.functional.softshrink(before[name], amount)
        assert torch.allclose(value, expected, atol=1e-7), name
    assert not amounts
