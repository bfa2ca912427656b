"""Gates on filters of experts and on whole experts, against the weights they stand for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import MixtralForCausalLM, PreTrainedModel

from hf_prune import PruningError, describe_model
from hf_prune.anatomy import ModelAnatomy
from hf_prune.gates import FilterGateMixin, UnitGates, add_filter_gates, remove_filter_gates
from hf_prune.scores import iterate_gradients
from tests.anatomy.test_experts import mixture_modules, without_experts
from tests.conformance.plans import difference, run
from tests.mixtures import EXPERTS, MIXTURES, batch, mixture
from tests.small_models import Batch

TOLERANCE = 1e-4

types = pytest.mark.parametrize("model_type", MIXTURES)


def whole(anatomy: ModelAnatomy) -> ModelAnatomy:
    return anatomy.with_whole_experts([block.key for block in anatomy.experts])


def random_values(sizes: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(size, generator=generator) for size in sizes]


@types
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_gates_of_one_change_nothing(model_type: str, implementation: str) -> None:
    model = mixture(model_type, experts=implementation)
    anatomy = describe_model(model)
    dense = run(model, batch())
    for view in (anatomy, whole(anatomy)):
        with UnitGates(model, view.blocks, [torch.ones(block.units) for block in view.blocks]):
            assert difference(run(model, batch()), dense) <= TOLERANCE
        assert difference(run(model, batch()), dense) == 0
    assert all("forward" not in vars(module) for modules in mixture_modules(model) for module in modules)


@types
def test_gates_on_filters_scale_what_reads_them(model_type: str) -> None:
    model = mixture(model_type)
    blocks = [block for block in describe_model(model).blocks if block.group is not None]
    values = random_values([block.units for block in blocks])
    scaled = copy.deepcopy(model)
    for block, value in zip(blocks, values, strict=True):
        down = scaled.get_submodule(block.layer).get_parameter(block.output.path).data[block.output.expert]
        down *= value[:, None] if model_type == "gpt_oss" else value
    expected = run(scaled, batch())
    assert difference(expected, run(model, batch())) > 0.1
    with UnitGates(model, blocks, values):
        assert difference(run(model, batch()), expected) <= TOLERANCE


@types
def test_gates_on_experts_scale_what_they_put_out(model_type: str) -> None:
    model = mixture(model_type)
    blocks = describe_model(model).experts
    values = random_values([EXPERTS] * len(blocks))
    scaled = copy.deepcopy(model)
    for (experts, _), value in zip(mixture_modules(scaled), values, strict=True):
        experts.down_proj.data *= value[:, None, None]
        if model_type == "gpt_oss":
            experts.down_proj_bias.data *= value[:, None]
    with UnitGates(model, blocks, values):
        assert difference(run(model, batch()), run(scaled, batch())) <= TOLERANCE


@types
def test_closed_experts_are_never_chosen(model_type: str) -> None:
    model = mixture(model_type)
    blocks = describe_model(model).experts
    masks = [torch.tensor([True, False, True, True, False, False]) for _ in blocks]
    closed = copy.deepcopy(model)
    without_experts(closed, [[1, 4, 5] for _ in blocks])
    with UnitGates(model, blocks, masks):
        assert difference(run(model, batch()), run(closed, batch())) <= TOLERANCE


def test_gates_on_some_experts_only() -> None:
    model = mixture("mixtral")
    blocks = [block for block in describe_model(model).blocks if block.group is not None]
    dense = run(model, batch())
    halves = [(torch.arange(block.units) % 2).float() for block in blocks]
    with UnitGates(model, blocks, [halves[0], *(torch.ones(block.units) for block in blocks[1:])]):
        expected = run(model, batch())
    with UnitGates(model, blocks[:1], halves[:1]):
        assert difference(run(model, batch()), expected) <= TOLERANCE
    assert difference(expected, dense) > 0.1


@types
@pytest.mark.parametrize("units", ["filters", "experts"])
def test_gradients_are_those_of_the_weights_one_example_at_a_time(model_type: str, units: str) -> None:
    """The gradient of a gate at one is Σ w ∂loss/∂w over the weights that it scales."""
    model = mixture(model_type)
    anatomy = describe_model(model)
    view = whole(anatomy) if units == "experts" else anatomy
    [gradients] = list(iterate_gradients(model, view, [batch()]))
    for example in range(3):
        alone = {name: value[example : example + 1] for name, value in batch().items()}
        expected = weight_gradients(model, view, alone, units)
        for block, gradient in zip(view.blocks, gradients, strict=True):
            if block.key in expected:
                torch.testing.assert_close(gradient[example], expected[block.key], atol=2e-4, rtol=1e-3)
    named = zip(view.blocks, gradients, strict=True)
    assert max(gradient.abs().max() for block, gradient in named if block.key in expected) > 0.01


def weight_gradients(
    model: PreTrainedModel, anatomy: ModelAnatomy, example: Batch, units: str
) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**example).loss.backward()
    expected: dict[str, torch.Tensor] = {}
    for block in anatomy.blocks:
        if block.output.expert is None:
            continue
        layer = model.get_submodule(block.layer)
        down: Any = layer.get_parameter(block.output.path)
        products = (down * down.grad).detach()
        if units == "experts":
            bias = getattr(layer.get_submodule(block.layout.name), "down_proj_bias", None)
            expected[block.key] = products.sum((1, 2)) + (0 if bias is None else (bias * bias.grad).detach().sum(1))
        else:
            expected[block.key] = products[block.output.expert].sum(1 if block.output.transposed else 0)
    return expected


def test_filter_gates_by_name_and_folded_into_a_checkpoint(tmp_path: Any) -> None:
    class Gated(FilterGateMixin, MixtralForCausalLM):
        pass

    source = mixture("mixtral")
    model = Gated(source.config).eval()
    model.load_state_dict(source.state_dict())
    values = random_values([block.units for block in describe_model(model).feed_forwards])
    add_filter_gates(model, values)
    expected = run(model, batch())
    model.save_pretrained(tmp_path)
    remove_filter_gates(model)
    assert difference(run(model, batch()), run(source, batch())) == 0
    assert difference(run(MixtralForCausalLM.from_pretrained(tmp_path), batch()), expected) <= TOLERANCE


def test_router_without_a_product_cannot_be_closed() -> None:
    model = mixture("mixtral")
    blocks = describe_model(model).experts
    for _, router in mixture_modules(model):
        # A router that multiplies a copy of its weight.
        router.__class__ = type("CopyingRouter", (type(router),), {"forward": _route_by_copy})
    gates = UnitGates(model, blocks, [torch.arange(EXPERTS).ne(1) for _ in blocks])
    with gates, pytest.raises(PruningError, match="Prune the experts' filters instead"):
        run(model, batch())


def _route_by_copy(self: Any, hidden: torch.Tensor) -> Any:
    logits = hidden.reshape(-1, self.hidden_dim) @ self.weight.T.clone()
    weights, places = logits.softmax(-1).topk(self.top_k)
    return logits, weights, places
