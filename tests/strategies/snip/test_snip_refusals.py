"""What SNIP cannot prune is refused before the first step, and the model is left as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, MambaConfig, PreTrainedModel

from hf_prune import InfeasibleBudgetError, PruningError, UnsupportedModelError, start_pruning
from hf_prune.gates import add_epsilon_gates, add_spectral_norm, add_weight_masks, epsilon_gates_of
from tests.family_models import main_head
from tests.gates.test_unit_gates import footprint
from tests.strategies.snip.runs import STEPS, config
from tests.training.runs import BERT, assert_same, bert, is_clean, weights

OUTPUT = "bert.encoder.layer.0.output.dense.weight"


def mamba() -> PreTrainedModel:
    return AutoModel.from_config(MambaConfig(num_hidden_layers=1, hidden_size=8, vocab_size=20))


def lora() -> PreTrainedModel:
    return get_peft_model(BERT.model(), LoraConfig(target_modules=["query"]))


def normalised() -> PreTrainedModel:
    model = bert()
    add_spectral_norm(model, bound=2.0, form="divide")
    return model


def gated() -> PreTrainedModel:
    model = bert()
    add_epsilon_gates(model)
    return model


def masked() -> PreTrainedModel:
    model = bert()
    add_weight_masks(model, {OUTPUT: torch.rand(model.get_parameter(OUTPUT).shape) > 0.5})
    return model


def unfinished() -> PreTrainedModel:
    """With weights that have no largest singular value."""
    model = bert()
    with torch.no_grad():
        model.get_parameter(OUTPUT)[0, 0] = math.inf
    return model


def mixtral() -> PreTrainedModel:
    return main_head("mixtral").model()


IN_PART = r"units='layers' removes a layer as a whole, but .*layer\.0\.intermediate out"
REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any], str]] = {
    "k": (bert, {"k": 13, "k_feed_forward": 1}, "k=13 for heads: .* of 12. Choose k from 1 to 12"),
    "k of FFNs": (bert, {"k_feed_forward": 4}, "k=4 for feed_forward: .* Choose k from 1 to 3"),
    "k of layers": (bert, {"k": 4, "units": "layers"}, "k=4 for layer: .* Choose k from 1 to 3"),
    "short": (bert, {"iterations": 4}, "iterations=4 take at least 15 .* has 12. Train longer"),
    "modules": (bert, {"target_modules": ["atention"]}, "'atention' matches nothing"),
    "no mapping": (bert, {"target_modules": ["attention"], "units": "feed_forward"}, "no feed_forward mappings"),
    "layers in part": (bert, {"target_modules": ["attention"], "units": "layers"}, IN_PART),
    "length": (bert, {"sequence_length": 100}, "sequence_length=100 exceeds the model's 48 positions"),
    "gates": (gated, {}, "has epsilon gates.*remove_epsilon_gates"),
    "spectral norm": (normalised, {"spectral_norm": 5}, "has spectral normalisation.*remove_spectral_norm"),
    "masks": (masked, {}, "is masked already"),
    "not finite": (unfinished, {"spectral_norm": 5}, "has weights that are not finite"),
    "no matrix": (mixtral, {"params": 0.9, "units": "heads", "spectral_norm": 5}, "several experts in one parameter"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_touched(name: str) -> None:
    build, settings, message = REFUSED[name]
    model = build()
    before, found = weights(model), footprint(model)
    with pytest.raises(PruningError, match=message):
        start_pruning(model, config(**settings), STEPS)
    assert_same(weights(model), before)
    assert footprint(model) == found


@pytest.mark.parametrize(
    ("build", "message"),
    [(mamba, r"'mamba'.*families\.py"), (lora, "[Mm]erge"), (mixtral, r"mixture of experts.* Use kinds=\('heads',\)")],
)
def test_models_that_are_not_understood(build: Callable[[], PreTrainedModel], message: str) -> None:
    model = build()
    before, found = weights(model), footprint(model)
    with pytest.raises(UnsupportedModelError, match=message):
        start_pruning(model, config(), STEPS)
    assert_same(weights(model), before)
    assert footprint(model) == found


@pytest.mark.parametrize(
    ("settings", "smallest"),
    [
        ({"params": 0.001}, "0.05"),
        ({"flops": 0.4, "units": "feed_forward"}, "0.8"),
        ({"params": 0.3, "units": "heads"}, "0.4"),
    ],
)
def test_a_goal_below_what_one_mapping_costs(settings: dict[str, Any], smallest: str) -> None:
    model = bert()
    found = footprint(model)
    with pytest.raises(InfeasibleBudgetError, match=f"cannot be reached .* keeps {smallest}") as caught:
        start_pruning(model, config(**settings), STEPS)
    assert footprint(model) == found
    assert is_clean(model)
    name = "flops" if "flops" in settings else "params"
    start_pruning(model, config(**settings | {name: caught.value.smallest}), STEPS).abandon()


def test_an_epsilon_that_is_not_finite() -> None:
    """Activations that overflow show when ε is taken from them."""
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner: Any = start_pruning(model, config(k=12, units="heads", params=0.9), STEPS, optimizer)
    with torch.no_grad():
        model.bert.encoder.layer[2].attention.output.dense.weight[0, 0] = 3e38
    for step in range(4):  # without gradients, which overflow as well
        model.train()(**BERT.batch(step))
        if step < 3:
            optimizer.step()
    with pytest.raises(PruningError, match=r"epsilon of heads=inf: .*must be finite and at least 0"):
        optimizer.step()
    pruner.abandon()
    assert is_clean(model)


def test_experts_may_be_left_out() -> None:
    model = mixtral()
    before, found = weights(model), footprint(model)
    pruner: Any = start_pruning(model, config(params=0.95, exclude_modules=["experts"]), STEPS)
    gates = epsilon_gates_of(model)
    assert gates is not None
    assert [mapping.kind for mapping in gates.mappings] == ["heads"] * model.config.num_hidden_layers
    pruner.abandon()
    assert_same(weights(model), before)
    assert footprint(model) == found
