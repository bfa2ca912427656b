"""Cutting single blocks, and putting back what was cut."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_prune import describe_model
from hf_prune.anatomy import UndoLog, cut_block, supported_model_types, weight_of
from hf_prune.anatomy.projections import Part, Projection, kept_indices
from hf_prune.surgery import shrink_model
from tests.conformance.plans import difference, run, varied_plan
from tests.family_models import HEAD_SIZE, main_head
from tests.small_models import HIDDEN, Case, case

ITEMS = [case("bert", "classification"), case("distilbert", "classification")]


def test_rows_of_units() -> None:
    plain = Projection("dense", 0, (Part(0, 3),), 5, bias=True)
    assert kept_indices(plain.owners(3, 9), [0, 2]).tolist() == [0, 1, 2, 6, 7, 8]
    assert kept_indices(plain.owners(3, 9), []).tolist() == []
    fused = Projection("qkv", 0, (Part(0, 2), Part(4, 1)), 5, bias=True)
    assert fused.owners(2, 8).tolist() == [0, 0, 1, 1, 0, 1, -1, -1]
    # Rows that belong to no unit always stay.
    assert kept_indices(fused.owners(2, 8), [1]).tolist() == [2, 3, 5, 6, 7]
    assert (fused.width, fused.parameters_per_unit) == (3, 3 * 5 + 3)


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_cut_keeps_rows_and_columns_of_the_named_units(item: Case) -> None:
    model = item.model()
    block = describe_model(model).attentions[0]
    layer = model.get_submodule(block.layer)
    old = copy.deepcopy(layer)
    cut_block(layer, block, [1, 3], UndoLog())
    columns = [*range(8, 16), *range(24, 32)]
    for projection in block.inputs:
        new, dense = layer.get_submodule(projection.path), old.get_submodule(projection.path)
        assert torch.equal(new.weight, dense.weight[columns])
        assert torch.equal(new.bias, dense.bias[columns])
        assert (new.in_features, new.out_features) == (HIDDEN, 16)
    new, dense = layer.get_submodule(block.output.path), old.get_submodule(block.output.path)
    assert torch.equal(new.weight, dense.weight[:, columns])
    assert torch.equal(new.bias, dense.bias)
    assert (new.in_features, new.out_features) == (16, HIDDEN)
    core = layer.get_submodule(block.layout.core)
    assert sorted(getattr(core, name) for name in block.counts) == [2, 16]


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_cut_parameters_are_trainable_where_the_old_ones_were(item: Case) -> None:
    model = item.model()
    block = describe_model(model).feed_forwards[0]
    layer = model.get_submodule(block.layer)
    layer.get_submodule(block.output.path).weight.requires_grad_(False)
    cut_block(layer, block, [1, 3], UndoLog())
    assert layer.get_submodule(block.inputs[0].path).weight.requires_grad
    assert not layer.get_submodule(block.output.path).weight.requires_grad


@pytest.mark.parametrize("item", ITEMS, ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("units", [(), (2,)], ids=["empty", "one"])
def test_undo_log_swaps_and_rolls_back(item: Case, attention: str, units: tuple[int, ...]) -> None:
    model, batch = item.model(attention), item.batch()
    anatomy = describe_model(model)
    dense, dense_state = run(model, batch), model.state_dict()
    attributes = {name: dict(module.__dict__) for name, module in model.named_modules()}
    log = UndoLog()
    for block in anatomy.blocks:
        cut_block(model.get_submodule(block.layer), block, units, log)
    cut, cut_state = run(model, batch), model.state_dict()
    assert difference(dense, cut) > 0.1

    for state, outputs in ((dense_state, dense), (cut_state, cut), (dense_state, dense)):
        log.swap()
        assert model.state_dict().keys() == state.keys()
        # The very same tensors come back, not copies.
        assert all(value.data_ptr() == state[name].data_ptr() for name, value in model.state_dict().items())
        assert difference(run(model, batch), outputs) == 0
    log.swap()
    log.roll_back()
    log.roll_back()
    assert difference(run(model, batch), dense) == 0
    for name, module in model.named_modules():
        assert module.__dict__.keys() == attributes[name].keys()
    assert describe_model(model) == anatomy


def by_head(weight: torch.Tensor, model_type: str) -> torch.Tensor:
    """The rows of a fused projection, as the modelling code splits them: `[heads, what a head has, hidden]`."""
    size, width = HEAD_SIZE, weight.shape[1]
    if model_type == "gpt_neox":
        return weight.reshape(-1, 3 * size, width)
    if model_type == "falcon":  # two queries, a key and a value for each KV group
        return weight.reshape(-1, 4 * size, width)
    if model_type == "codegen":  # four slices of queries, values and keys, with a share of the heads in each
        slices = weight.reshape(4, 3, -1, size, width)
        return slices.permute(2, 0, 1, 3, 4).reshape(slices.shape[2], -1, width)
    heads = weight.shape[0] // (3 * size) if model_type == "gpt2" else 2 * weight.shape[0] // (4 * size)
    groups = heads if model_type == "gpt2" else heads // 2
    parts = weight.split([heads * size, groups * size, groups * size])
    return torch.cat([part.reshape(groups, -1, width) for part in parts], dim=1)


@pytest.mark.parametrize("model_type", ["gpt_neox", "falcon", "codegen", "gpt2", "phi3"])
def test_cut_of_a_fused_projection_takes_whole_heads(model_type: str) -> None:
    model = main_head(model_type).model()
    block = describe_model(model).attentions[0]
    layer = model.get_submodule(block.layer)
    [fused] = block.inputs
    dense = by_head(weight_of(layer, fused).detach().clone(), model_type)
    kept = [unit for unit in range(block.units) if unit != 1]
    cut_block(layer, block, kept, UndoLog())
    assert torch.equal(by_head(weight_of(layer, fused), model_type), dense[kept])
    assert layer.get_submodule(fused.path)(torch.randn(2, fused.other)).shape[1] == dense[kept].shape[:2].numel()


@pytest.mark.parametrize("model_type", supported_model_types())
def test_every_family_is_rolled_back_without_a_trace(model_type: str) -> None:
    model = main_head(model_type).model()
    anatomy = describe_model(model)
    tensors = {name: value.data_ptr() for name, value in model.state_dict().items()}
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    log = shrink_model(model, anatomy, varied_plan(anatomy))
    assert [value.data_ptr() for value in model.state_dict().values()] != list(tensors.values())
    log.roll_back()
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == tensors
    for name, module in model.named_modules():
        assert vars(module).keys() == attributes[name].keys()
        numbers = {key: value for key, value in attributes[name].items() if isinstance(value, int)}
        assert {key: vars(module)[key] for key in numbers} == numbers
    assert describe_model(model) == anatomy


def test_undo_log_forgets_attributes_that_were_not_there() -> None:
    module, log = nn.Linear(2, 2), UndoLog()
    log.set(module, "forward", lambda values: values)
    assert "forward" in vars(module)
    log.roll_back()
    assert "forward" not in vars(module)


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_attention_without_heads_returns_probabilities_of_no_heads(item: Case) -> None:
    for attention, shape in (("eager", (4, 0, 9, 9)), ("sdpa", None)):
        model, batch = item.model(attention), item.batch()
        block = describe_model(model).attentions[1]
        cut_block(model.get_submodule(block.layer), block, [], UndoLog())
        core = model.get_submodule(block.layer).get_submodule(block.layout.core)
        with torch.no_grad():
            probabilities = core(torch.randn(4, 9, HIDDEN))[1]
            attentions = model(**batch, output_attentions=attention == "eager").attentions
        assert (None if probabilities is None else tuple(probabilities.shape)) == shape
        if attention == "eager":
            assert [entry.shape[1] for entry in attentions] == [4, 0, 4]
