"""One iteration on a model that does not learn, against the definition of ε, usage and what is removed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_prune import SnipPruningConfig, start_pruning
from hf_prune.strategies.snip import SnipPruner
from tests.small_models import Batch
from tests.strategies.snip.runs import run_steps
from tests.training.runs import BERT, bert

STEPS = 30
MEASURED, GATED = range(8, 10), range(10, 15)

Maxima = dict[tuple[str, int], torch.Tensor]


def maxima(model: PreTrainedModel, batch: Batch, reduction: str, epsilon: dict[str, float]) -> Maxima:
    """max|F| of every head and FFN, over the mini-batch or example by example; what is at most ε is closed."""
    found: Maxima = {}

    def is_open(key: tuple[str, int], values: torch.Tensor) -> torch.Tensor:
        examples = (values.abs() * batch["attention_mask"][..., None]).flatten(1).amax(1)
        found[key] = examples if reduction == "example" else examples.max()[None]
        return (found[key] > epsilon.get(key[0].split(".")[-1], -1.0)).float()[:, None, None]

    def close_heads(layer: int, module: nn.Linear, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        inputs = args[0].clone()
        for head in range(4):
            columns = slice(8 * head, 8 * head + 8)
            product = inputs[..., columns] @ module.weight[:, columns].T
            inputs[..., columns] *= is_open((f"encoder.layer.{layer}.attention", head), product)
        return (inputs,)

    def close_ffn(layer: int, module: nn.Linear, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output * is_open((f"encoder.layer.{layer}.intermediate", 0), output)

    handles = []
    for index, layer in enumerate(model.bert.encoder.layer):
        handles.append(layer.attention.output.dense.register_forward_pre_hook(partial(close_heads, index)))
        handles.append(layer.output.dense.register_forward_hook(partial(close_ffn, index)))
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return found


def mean(rows: list[Maxima]) -> dict[tuple[str, int], float]:
    return {key: float(torch.cat([row[key] for row in rows]).double().mean()) for key in rows[0]}


def expected(config: SnipPruningConfig) -> tuple[dict[str, float], set[tuple[str, int]]]:
    """ε, and what the first iteration removes."""
    model = bert()
    means = mean([maxima(model, BERT.batch(step), config.reduction, {}) for step in MEASURED])
    epsilon = {}
    for kind, k in (("attention", config.k), ("intermediate", config.k_feed_forward or config.k)):
        epsilon[kind] = sorted(value for key, value in means.items() if key[0].endswith(kind))[k - 1]
    opened = []
    for step in GATED:
        found = maxima(model, BERT.batch(step), config.reduction, epsilon)
        opened.append({key: (value > epsilon[key[0].split(".")[-1]]).float() for key, value in found.items()})
    usage = mean(opened)
    limit = config.theta if config.rule == "open_rate" else 1e-9
    gone = {key for key, value in usage.items() if value < limit}
    if not gone:
        gone = {min(usage, key=lambda key: (usage[key], means[key] / epsilon[key[0].split(".")[-1]]))}
    return epsilon, gone


CONFIGS = {
    "default": {},
    "more": {"k": 4, "k_feed_forward": 2},
    "rarely open": {"k": 4, "k_feed_forward": 2, "theta": 0.7},
    "never open": {"k": 7, "k_feed_forward": 2, "rule": "always_closed"},
    "per example": {"k": 4, "k_feed_forward": 2, "reduction": "example", "theta": 0.6},
    "none unused": {"k": 1, "k_feed_forward": 1, "theta": 0.01},
}


def result(name: str) -> tuple[dict[str, float], set[tuple[str, int]]]:
    """What the strategy makes of it."""
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = start_pruning(model, settings(name), STEPS, optimizer)
    assert isinstance(pruner, SnipPruner)
    run_steps(pruner, model, optimizer, range(14), record=False)
    logs = pruner.logs()
    assert logs["params"] == 1.0
    run_steps(pruner, model, optimizer, range(14, 15), record=False)
    pruner.abandon()
    gone = set()
    for key, kept in pruner.kept.items():
        full = 4 if key.endswith("attention") else 1
        on = kept if full == 4 else kept[:1]
        gone |= {(key, unit) for unit in set(range(full)) - set(on)}
    return {"attention": logs["epsilon_heads"], "intermediate": logs["epsilon_feed_forward"]}, gone


def settings(name: str) -> SnipPruningConfig:
    return SnipPruningConfig(params=0.06, iterations=2, most=1.0, **CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_an_iteration_is_as_defined(name: str) -> None:
    epsilon, gone = expected(settings(name))
    found, lost = result(name)
    assert found == pytest.approx(epsilon)
    assert lost == gone


def test_the_settings_matter() -> None:
    """Otherwise one that does nothing would pass the test above."""
    removed = {name: frozenset(expected(settings(name))[1]) for name in CONFIGS}
    assert len(set(removed.values())) == len(CONFIGS), removed
    assert len(removed["none unused"]) == 1
