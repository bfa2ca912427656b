"""Whole layers go, and the config, the cache, the checkpoint and a later cut know about it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from hf_prune import PruningError, describe_model
from hf_prune.anatomy.example_inputs import example_batch
from hf_prune.recovery import Repair
from hf_prune.surgery import PruningPlan, apply_plan, verify
from hf_prune.surgery.layers import LayerRemoval
from tests.conformance.plans import difference, run
from tests.surgery.layer_examples import (
    BERT,
    DECODERS,
    EXAMPLES,
    GEMMA3,
    GPT_NEO,
    IDS,
    LLAMA,
    SIZES,
    VISION,
    Example,
    remove,
)


def without_layers(model: PreTrainedModel, example: Example) -> PreTrainedModel:
    """A model that was built with fewer layers, with the weights of those that stay under their new names."""
    config = type(model.config)(**{**example.settings, **_constructor_entries(example)})
    built = type(model)(config).eval()
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    gone = {prefix + name for name in example.removed}
    lists = {name.rpartition(".")[0] for name in gone}
    state = {}
    for name, value in model.state_dict().items():
        found = re.match(rf"({'|'.join(map(re.escape, lists))})\.(\d+)\.(.*)", name)
        if found is None:
            state[name] = value
        elif f"{found[1]}.{found[2]}" not in gone:
            before = sum(f"{found[1]}.{number}" in gone for number in range(int(found[2])))
            state[f"{found[1]}.{int(found[2]) - before}.{found[3]}"] = value
    built.load_state_dict(state)
    return built


def _constructor_entries(example: Example) -> dict[str, Any]:
    if "attention_layers" in example.entries:
        kinds = example.entries["attention_layers"]
        return {"num_layers": len(kinds), "attention_types": [[[kind], 1] for kind in kinds]}
    return example.entries


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_removed_layers_are_gone_from_model_config_and_checkpoint(example: Example, tmp_path: Path) -> None:
    model = example.model()
    batch = example_batch(model)
    dense, expected = run(model, batch), run(without_layers(model, example), batch)
    remove(model, example.removed)
    assert difference(run(model, batch), expected) == 0
    assert difference(expected, dense) > 1e-2
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert difference(run(loaded, batch), expected) == 0
    for config in (model.config, loaded.config):
        assert {name: getattr(config, name) for name in example.entries} == example.entries


def test_both_towers_lose_a_layer(tmp_path: Path) -> None:
    sizes = {"text_config": {**SIZES, **IDS}, "vision_config": VISION, "projection_dim": 16}
    clip = Example("CLIPModel", sizes, (), {}).model()
    batch = example_batch(clip)
    remove(clip, ("text_model.encoder.layers.1", "vision_model.encoder.layers.0", "vision_model.encoder.layers.2"))
    assert (clip.config.text_config.num_hidden_layers, clip.config.vision_config.num_hidden_layers) == (3, 2)
    clip.save_pretrained(tmp_path)
    assert difference(run(type(clip).from_pretrained(tmp_path), batch), run(clip, batch)) == 0


@pytest.mark.parametrize(
    ("example", "cache"),
    # With a static cache, transformers' own dense GPT-Neo generates something else than without one.
    [(example, cache) for example in DECODERS for cache in (None, "static") if (example, cache) != (GPT_NEO, "static")],
    ids=str,
)
def test_generation_is_the_same_with_and_without_cache(example: Example, cache: str | None) -> None:
    model = example.model()
    remove(model, example.removed, {})
    ids = example_batch(model, length=6)["input_ids"]
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(ids, **settings, **({"cache_implementation": cache} if cache else {}))
    assert torch.equal(cached, model.generate(ids, use_cache=False, **settings))
    state = model(input_ids=ids, use_cache=True).past_key_values
    assert len(state) == model.config.num_hidden_layers
    assert state.get_seq_length() == 6


def test_removing_layers_is_undone_altogether() -> None:
    model = GEMMA3.model().train()
    batch = example_batch(model)
    state, config, modes = dict(model.state_dict()), model.config.to_dict(), [m.training for m in model.modules()]
    dense = run(model.eval(), batch)
    model.train()
    anatomy = describe_model(model)
    log = apply_plan(model, anatomy, PruningPlan({}, GEMMA3.removed), batch=batch)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    assert all(module.training for module in model.modules())
    shrunk = run(model.eval(), batch)
    log.swap()
    assert difference(run(model, batch), dense) == 0
    log.swap()
    assert difference(run(model, batch), shrunk) == 0
    log.roll_back()
    model.train()
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]
    assert model.config.to_dict() == config
    assert [module.training for module in model.modules()] == modes
    assert all(value is state[name] or torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert describe_model(model) == anatomy


def test_failed_comparison_leaves_the_dense_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LLAMA.model()
    batch, anatomy, config = example_batch(model), describe_model(model), model.config.to_dict()
    right = LayerRemoval.of(model, anatomy, PruningPlan({}, ("layers.1",)))
    monkeypatch.setattr(LayerRemoval, "of", lambda *arguments: right)
    with pytest.raises(PruningError, match="differ from the masked model's"):
        apply_plan(model, anatomy, PruningPlan({}, ("layers.2",)), batch=batch)
    assert model.config.to_dict() == config
    assert describe_model(model) == anatomy
    assert not any(module._forward_hooks for module in model.modules())


def test_units_layers_and_repairs_go_together() -> None:
    model = BERT.model()
    anatomy, batch = describe_model(model), example_batch(model)
    attention, gone = anatomy["encoder.layer.1.attention"], anatomy["encoder.layer.0.attention"]
    generator = torch.Generator().manual_seed(0)
    repairs = {
        block.key: Repair(torch.randn(32, 16, generator=generator), torch.randn(32, generator=generator))
        for block in (attention, gone)
    }
    plan = PruningPlan({attention.key: (0, 3), gone.key: (0, 3)}, ("encoder.layer.0",))
    apply_plan(model, anatomy, plan, repairs, batch)
    moved = model.bert.encoder.layer[0].attention.output.dense
    assert torch.equal(moved.weight, repairs[attention.key].weight)
    assert [block.units for block in describe_model(model).blocks] == [2, 40, 4, 40, 4, 40]


def test_layers_and_heads_are_counted_in_the_original_model(tmp_path: Path) -> None:
    model = LLAMA.model(num_hidden_layers=5)
    remove(model, ("layers.1",), {"layers.2.self_attn": (1,), "layers.4.mlp": tuple(range(7))})
    remove(model, ("layers.0", "layers.2"), {"layers.1.mlp": (3, 4)})
    blocks = model.config.pruning["blocks"]
    assert model.config.pruning["layers"] == {"layers": {"of": 5, "kept": [2, 4]}}
    assert blocks == {
        "layers.0.self_attn": {"kept": 1, "of": 2, "heads": [1]},
        "layers.0.mlp": {"kept": 2, "of": 40},
        "layers.1.self_attn": {"kept": 2, "of": 2, "heads": [0, 1]},
        "layers.1.mlp": {"kept": 7, "of": 40},
    }
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    batch = example_batch(model)
    assert difference(run(loaded, batch), run(model, batch)) == 0
    remove(loaded, ("layers.0",))
    assert loaded.config.pruning["layers"] == {"layers": {"of": 5, "kept": [4]}}


LOAD = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    logits = model(**load_file(sys.argv[2])).logits
save_file({"logits": logits}, sys.argv[3])
assert "hf_prune" not in sys.modules
"""


def test_a_model_that_has_only_lost_layers_needs_no_hf_prune(tmp_path: Path, run_python: Callable[..., str]) -> None:
    model = GEMMA3.model()
    remove(model, GEMMA3.removed)
    model.save_pretrained(tmp_path / "model")
    inputs = {name: value for name, value in example_batch(model).items() if isinstance(value, torch.Tensor)}
    save_file(inputs, tmp_path / "inputs.safetensors")
    run_python(LOAD, tmp_path / "model", tmp_path / "inputs.safetensors", tmp_path / "logits.safetensors")
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], run(model, inputs)[0])


# --- metadata is not believed before it has been checked ---


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([2], r"\['layers'\] must be a dictionary, got list"),
        ({"layers": 2}, "the layers layers must have 'kept' and 'of'"),
        ({"layers": {"of": 3, "kept": [0, 1], "code": "os"}}, "must have 'kept' and 'of'"),
        ({"layers": {"of": 3, "kept": 2}}, "of 3 layers in layers it keeps 2"),
        ({"layers": {"of": 3, "kept": []}}, r"it keeps \[\]"),
        ({"layers": {"of": -3, "kept": [0, 1]}}, "of -3 layers"),
        ({"layers": {"of": 3, "kept": [0, 3]}}, r"it keeps \[0, 3\]"),
        ({"layers": {"of": 3, "kept": [1, 0]}}, r"it keeps \[1, 0\]"),
        ({"layers": {"of": 10**15, "kept": [0, 10**14, 10**15 - 1]}}, "3 layers are left in layers, but this config"),
        ({"layers": {"of": 4, "kept": [1]}}, "1 layers are left in layers, but this config builds 2"),
    ],
)
def test_bad_metadata_about_layers(layers: Any, message: str) -> None:
    model = LLAMA.model()
    remove(model, LLAMA.removed)
    config = copy.deepcopy(model.config)
    config.pruning = json.loads(json.dumps({**config.pruning, "layers": layers}))
    with pytest.raises(PruningError, match=message):
        type(model)(config)


def test_repairs_are_not_installed_in_layers_that_moved_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BERT.model()
    anatomy, seen = describe_model(model), []
    block = anatomy["encoder.layer.3.intermediate"]
    target: nn.Module = model.get_submodule(block.layer)
    right = verify.put_repair
    monkeypatch.setattr(verify, "put_repair", lambda layer, *rest: (seen.append(layer), right(layer, *rest)))
    repair = Repair(torch.zeros(32, 40), torch.zeros(32))
    apply_plan(model, anatomy, PruningPlan({}, ("encoder.layer.0",)), {block.key: repair})
    assert seen == [target]
