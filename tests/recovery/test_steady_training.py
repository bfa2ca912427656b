"""Training as in evaluation, for models that drop things out in their layers' own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_prune import recover
from hf_prune.recovery.steady_training import steady
from tests.family_models import head_named, labels, sample
from tests.training.runs import arguments, assert_same, weights

DROPPING = {
    "BartForConditionalGeneration": ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop"),
    "OPTForCausalLM": ("dropout", "attention_dropout"),
    "Wav2Vec2ForCTC": ("layerdrop", "hidden_dropout", "attention_dropout", "activation_dropout"),
}


def rows_of(model: PreTrainedModel) -> list[dict[str, Any]]:
    batch = sample(model)
    batch |= labels(model, batch)
    return [{name: value[row] for name, value in batch.items()} for row in range(3)] * 2


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", DROPPING)
def test_nothing_is_dropped(name: str, checkpointed: bool, tmp_path: Path) -> None:
    def trained(probability: float) -> dict[str, torch.Tensor]:
        model = head_named(name).model(**dict.fromkeys(DROPPING[name], probability))
        kept = [vars(module) for module in model.modules()]
        before = [{key: value for key, value in one.items() if isinstance(value, float)} for one in kept]
        args = arguments(tmp_path, max_steps=2, activation_checkpointing=checkpointed)
        recover(model, head_named(name).model(seed=1), rows_of(model), training_args=args, lora=False)
        assert [{key: value for key, value in one.items() if isinstance(value, float)} for one in kept] == before
        return weights(model)

    assert_same(trained(0.0), trained(0.5))


def test_layers_that_checkpoint_do_so() -> None:
    model = head_named("BartForConditionalGeneration").model(dropout=0.5)
    model.train().activation_checkpointing_enable()
    layers = [module for module in model.modules() if getattr(module, "dropout", None) == 0.5]
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    batch = sample(model)
    with steady(model, list(model.modules())):
        model.model.encoder.layers[0].fc1.register_forward_hook(count)
        loss = model(**batch, **labels(model, batch)).loss
        assert [layer.training for layer in layers] == [
            isinstance(layer, GradientCheckpointingLayer) for layer in layers
        ]
        loss.backward()
    assert runs == 2  # once more for the gradients
    assert all(layer.dropout == 0.5 for layer in layers)
