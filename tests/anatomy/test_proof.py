"""Models that the table does not know: accepted if cutting is what masking is, refused otherwise, untouched either way.

The models here are freshly initialised on purpose: their attention is almost uniform and their biases are zero, so that
a proof that only looks at their outputs would accept wrong cuts.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MixtralConfig,
    MixtralModel,
    PreTrainedModel,
    T5Config,
    T5Model,
)

from hf_prune import UnsupportedModelError, describe_model
from hf_prune.anatomy import UndoLog, cut, cut_block, describe
from hf_prune.anatomy.describe import unknown_model_types
from hf_prune.anatomy.layer_trial import mask_layer
from hf_prune.anatomy.proof import prove

_SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**_SIZES))


def llama() -> PreTrainedModel:
    return LlamaModel(LlamaConfig(**_SIZES, num_key_value_heads=2))


def gpt2() -> PreTrainedModel:
    return GPT2Model(GPT2Config(vocab_size=61, n_embd=32, n_head=4, n_layer=2, n_inner=24, n_positions=32))


def t5() -> PreTrainedModel:
    return T5Model(T5Config(vocab_size=61, d_model=32, d_kv=8, num_heads=4, d_ff=24, num_layers=2))


def mixtral() -> PreTrainedModel:
    return MixtralModel(MixtralConfig(**_SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2))


MODELS = [bert, llama, gpt2, t5, mixtral]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in the table, though its layouts are still tried."""
    monkeypatch.setattr(describe, "family_of", lambda model_type: None)


def trace(model: nn.Module) -> Iterator[Any]:
    """What a proof could leave behind."""
    for name, module in model.named_modules():
        yield name, sorted(vars(module)), module.training, len(module._forward_pre_hooks), len(module._forward_hooks)
    for name, value in model.state_dict(keep_vars=True).items():
        yield name, id(value), value.requires_grad, value.double().sum().item()


@pytest.mark.parametrize("build", MODELS)
def test_a_type_that_the_table_lacks_has_the_blocks_that_the_table_would_give_it(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    declared = describe_model(model)
    monkeypatch.setattr(describe, "family_of", lambda model_type: None)
    assert unknown_model_types(model) == (model.config.model_type,)
    found = describe_model(model)
    assert [(block.key, block.units) for block in found.blocks] == [(item.key, item.units) for item in declared.blocks]
    assert [block.minimum for block in found.blocks] == [block.minimum for block in declared.blocks]
    assert not found.experts


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("build", MODELS)
def test_a_proof_leaves_the_model_as_it_was(build: Any) -> None:
    model = build().train()
    before, random_state = list(trace(model)), torch.get_rng_state()
    describe_model(model)
    assert list(trace(model)) == before
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("build", [bert, llama, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_rows_of_any_projection_are_refused(
    build: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build().to(dtype)
    paths = {projection.path for block in describe_model(model).blocks for projection in block.projections}
    for path in paths:
        with monkeypatch.context() as patch:
            _cut_wrongly(patch, path)
            before = list(trace(model))
            with pytest.raises(UnsupportedModelError, match="cutting differs from masking"):
                describe_model(model)
        assert list(trace(model)) == before


def _cut_wrongly(patch: pytest.MonkeyPatch, path: str) -> None:
    """One projection keeps as many units as the others, but other ones."""
    right = cut._keep_units

    def keep(layer: Any, projection: Any, before: int, units: Any, log: Any) -> None:
        if projection.path == path and 0 < len(units) < before:
            others = [unit for unit in range(before) if unit not in units]
            units = sorted([*units[1:], others[0]])
        right(layer, projection, before, units, log)

    patch.setattr(cut, "_keep_units", keep)


@pytest.mark.usefixtures("unknown")
def test_wrong_biases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are zero when a model is new, so nothing but other values can tell."""
    right = cut._keep_units

    def keep(layer: Any, projection: Any, before: int, units: Any, log: Any) -> None:
        right(layer, projection, before, units, log)
        bias = layer.get_submodule(projection.path).bias
        if projection.axis == 0 and bias is not None and units:
            log.set(layer.get_submodule(projection.path), "bias", nn.Parameter(bias.detach().flip(0)))

    monkeypatch.setattr(cut, "_keep_units", keep)
    with pytest.raises(UnsupportedModelError, match="cutting differs from masking"):
        describe_model(bert())


@pytest.mark.usefixtures("unknown")
def test_layers_that_no_example_reaches_are_refused() -> None:
    model = llama()
    model.spare = nn.ModuleList([model.layers[1]])
    model.layers = model.layers[:1]
    with pytest.raises(UnsupportedModelError, match=r"'llama'.* never reaches spare\.0.*families\.py"):
        describe_model(model)


@pytest.mark.usefixtures("unknown")
def test_models_that_exchange_modules_while_they_run_are_refused_and_get_theirs_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, right = llama(), LlamaModel.forward

    @functools.wraps(right)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.layers[1].mlp = copy.deepcopy(self.layers[1].mlp)
        return right(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    before = list(trace(model))
    with pytest.raises(UnsupportedModelError, match="exchanges modules"):
        describe_model(model)
    assert list(trace(model)) == before


@pytest.mark.usefixtures("unknown")
def test_models_that_do_not_run_are_refused_with_their_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ValueError("needs a map")

    monkeypatch.setattr(LlamaModel, "forward", fail)
    with pytest.raises(UnsupportedModelError, match=r"No example batch .*ValueError: needs a map"):
        describe_model(llama())


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("build", [bert, llama, gpt2])
@pytest.mark.parametrize("kind", ["attention", "feed_forward"])
def test_layers_that_have_lost_all_units_of_one_block_are_proved_by_the_others(build: Any, kind: str) -> None:
    model = build()
    blocks = describe_model(model).blocks
    emptied = [block for block in blocks if block.kind == kind][-1]
    cut_block(model.get_submodule(emptied.layer), emptied, (), UndoLog())
    expected = {block.key: 0 if block.key == emptied.key else block.units for block in blocks}
    assert {block.key: block.units for block in describe_model(model).blocks} == expected


@pytest.mark.usefixtures("unknown")
def test_masking_experts_copies_their_parameter_once() -> None:
    model = mixtral()
    experts = [
        block for block in describe_model(model).blocks if block.group is not None and ".0." in block.layer + "."
    ]
    layer, log = model.get_submodule(experts[0].layer), UndoLog()
    before = layer.mlp.experts.down_proj
    kept = {block.key: (index, 5) for index, block in enumerate(experts)}
    mask_layer(layer, experts, kept, log)
    assert len(log._entries) == 1
    masked = layer.mlp.experts.down_proj
    for index in range(4):
        assert masked[index].any(0).nonzero().flatten().tolist() == [index, 5]
    log.roll_back()
    assert layer.mlp.experts.down_proj is before
    assert before.all()


def test_blocks_that_cannot_go_whole_keep_a_unit() -> None:
    """Llama's attention returns two values; a bypass that returned three would break the layer."""
    model = llama()
    anatomy = describe_model(model)
    assert [block.minimum for block in anatomy.blocks] == [1, 0, 0, 0]
    broken = tuple(
        replace(block, layout=replace(block.layout, returns=3)) if block.kind == "attention" else block
        for block in anatomy.blocks
    )
    proved = prove(model, replace(anatomy, blocks=broken), ["llama"])
    assert [block.minimum for block in proved.blocks] == [1, 0, 1, 0]


@pytest.mark.usefixtures("unknown")
def test_models_without_weights_are_believed() -> None:
    with torch.device("meta"):
        model = llama()
    assert [block.units for block in describe_model(model).blocks] == [2, 24, 2, 24]
