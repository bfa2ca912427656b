"""Layers that cannot be removed, and empty ones that can be only where they do nothing."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import PruningError, describe_model
from hf_prune.anatomy.example_inputs import example_batch
from hf_prune.surgery import PruningPlan, apply_plan, drop_identity_layers, shrink_model
from tests.conformance.plans import difference, run
from tests.surgery.layer_examples import (
    BERT,
    GEMMA3,
    GPT2,
    GROUPS,
    IDS,
    LLAMA,
    SIZES,
    T5,
    Example,
    remove,
)


@pytest.mark.parametrize(
    ("example", "changes", "removed", "message"),
    [
        (LLAMA, {}, ("layers.9",), "names the layer 'layers.9', which the model lacks; the layers are layers.0, "),
        (LLAMA, {}, ("layers.1", "layers.1"), "names a layer twice"),
        (LLAMA, {}, tuple(f"layers.{index}" for index in range(4)), "every layer of model.layers; at least one"),
        (T5, {}, ("decoder.block.0",), "computes the position biases for all layers after it"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, ("h.0",), "GPT2Config has no entries that would say so"),
        (GEMMA3, {}, ("layers.2",), "cannot be removed, because Gemma3TextConfig has no entries"),
    ],
)
def test_layers_that_cannot_go(
    example: Example, changes: dict[str, Any], removed: tuple[str, ...], message: str
) -> None:
    model = example.model(**changes)
    anatomy, config = describe_model(model), model.config.to_dict()
    with pytest.raises(PruningError, match=re.escape(message)):
        shrink_model(model, anatomy, PruningPlan({}, removed))
    assert model.config.to_dict() == config
    assert describe_model(model) == anatomy


def test_first_layer_that_is_built_differently_has_to_stay() -> None:
    model = Example("ModernBertForMaskedLM", {**SIZES, "pad_token_id": 0}, (), {}).model()
    anatomy = describe_model(model)
    with pytest.raises(PruningError, match=r"attn_norm.class would change from .*LayerNorm"):
        shrink_model(model, anatomy, PruningPlan({}, ("layers.0",)))
    shrink_model(model, anatomy, PruningPlan({}, ("layers.1",)))
    assert len(model.model.layers) == 3


def test_layers_that_share_their_weights_stay() -> None:
    settings = {**SIZES, "embedding_size": 16}
    model = Example("AlbertForMaskedLM", settings, (), {}).model()
    anatomy = describe_model(model)
    layer = anatomy.blocks[0].key.removesuffix(f".{anatomy.blocks[0].layout.name}")
    with pytest.raises(PruningError, match="runs 4 times"):
        shrink_model(model, anatomy, PruningPlan({}, (layer,)))


def test_layer_that_would_come_first_needs_a_head() -> None:
    model = GEMMA3.model()
    anatomy = describe_model(model)
    plan = PruningPlan({"layers.1.self_attn": ()}, ("layers.0",))
    with pytest.raises(PruningError, match=r"layers\.1\.self_attn would come first"):
        shrink_model(model, anatomy, plan)
    shrink_model(model, anatomy, PruningPlan({"layers.3.self_attn": ()}, ("layers.0",)))


def test_buffers_that_depend_on_the_place_are_not_read_back_wrongly() -> None:
    model = LLAMA.model()
    for index, layer in enumerate(model.model.layers):
        layer.register_buffer("slope", torch.tensor(1.0 / (index + 1)), persistent=False)
    with pytest.raises(PruningError, match=r"model\.layers\.1\.slope depends on the layer's place"):
        shrink_model(model, describe_model(model), PruningPlan({}, ("layers.0",)))


def test_position_biases_that_only_a_removed_layer_called_for() -> None:
    model = T5.model()
    remove(model, (), {"encoder.block.1.layer.0.SelfAttention": (0, 2)})
    with pytest.raises(PruningError, match=r"All layers of encoder\.block that have lost heads would be removed"):
        shrink_model(model, describe_model(model), PruningPlan({}, ("encoder.block.1",)))
    remove(model, ("encoder.block.2",))
    batch = example_batch(model)
    rebuilt = type(model)(copy.deepcopy(model.config)).eval()
    rebuilt.load_state_dict(model.state_dict())
    assert difference(run(rebuilt, batch), run(model, batch)) == 0


# --- layers that are empty and do nothing ---


def emptied(model: PreTrainedModel, *layers: int) -> PruningPlan:
    blocks = describe_model(model).blocks
    return PruningPlan({block.key: () for block in blocks if int(block.layer.rpartition(".")[2]) in layers})


def test_empty_layers_without_biases_are_removed_exactly() -> None:
    for name, settings in (("LlamaForCausalLM", LLAMA.settings), ("Gemma2ForCausalLM", {**SIZES, **GROUPS, **IDS})):
        model = Example(name, settings, (), {}).model()
        anatomy, batch = describe_model(model), example_batch(model)
        plan = emptied(model, 2, 3)
        shorter = drop_identity_layers(model, anatomy, plan, batch)
        assert shorter.removed_layers == ("layers.2", "layers.3")
        assert shorter.kept == plan.kept
        twin = copy.deepcopy(model)
        shrink_model(twin, anatomy, plan)
        apply_plan(model, anatomy, shorter, batch=batch)
        assert difference(run(model, batch), run(twin, batch)) == 0
        assert (len(model.model.layers), len(twin.model.layers)) == (2, 4)


@pytest.mark.parametrize("example", [BERT, GPT2], ids=str)
def test_empty_layers_with_biases_stay(example: Example) -> None:
    model = example.model()
    plan = emptied(model, 1)
    assert drop_identity_layers(model, describe_model(model), plan, example_batch(model)) == plan


def test_empty_layers_that_still_do_something_stay() -> None:
    model = LLAMA.model()
    model.model.layers[1].register_forward_hook(lambda module, args, output: output * 1.5)
    plan = emptied(model, 1, 2)
    shorter = drop_identity_layers(model, describe_model(model), plan, example_batch(model))
    assert shorter.removed_layers == ("layers.2",)


def test_empty_layers_that_cannot_go_stay() -> None:
    model = T5.model()
    anatomy = describe_model(model)
    plan = PruningPlan({block.key: () for block in anatomy.blocks if block.key.startswith("encoder.block.")})
    shorter = drop_identity_layers(model, anatomy, plan, example_batch(model))
    assert shorter.removed_layers == ("encoder.block.1", "encoder.block.2", "encoder.block.3")
    apply_plan(model, anatomy, shorter, batch=example_batch(model))
