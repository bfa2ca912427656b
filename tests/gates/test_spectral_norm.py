"""Spectral normalisation against `torch.linalg.svdvals`, and what it leaves of a model once it is off."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_prune.anatomy import all_matrices
from hf_prune.gates import (
    add_spectral_norm,
    add_weight_masks,
    has_spectral_norm,
    largest_singular_values,
    remove_spectral_norm,
    remove_weight_masks,
    restart_spectral_norm,
)
from hf_prune.gates.spectral_parametrization import SpectralNorm, normalised_matrices
from tests.family_models import main_head
from tests.small_models import HIDDEN, LAYERS, case

CASE = case("bert", "masked")
BOUND = 3.9  # between the largest singular values of the small model's matrices
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
OUTPUT = "bert.encoder.layer.1.attention.output.dense.weight"


def largest(weight: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(weight.detach().double())[0])


def effective(model: nn.Module) -> dict[str, torch.Tensor]:
    """The matrices as the modules use them."""
    return {item.name: item.module.weight for item in normalised_matrices(model)}


def vectors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {item.name: item.norm.vector.clone() for item in normalised_matrices(model)}


def shake(model: nn.Module, size: float = 0.1) -> None:
    """Changes the raw matrices as a training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for item in normalised_matrices(model):
            item.raw.add_(size * torch.randn(item.raw.shape, generator=generator))


@pytest.mark.parametrize("form", ["clip", "divide"])
def test_matrices_have_the_largest_singular_value_of_the_form(form: str) -> None:
    model = CASE.model()
    raw = {item.name: item.parameter.detach().clone() for item in all_matrices(model)}
    names = add_spectral_norm(model, bound=BOUND, form=form)
    before = {name: largest(raw[name]) for name in names}
    assert min(before.values()) < 0.95 * BOUND
    assert max(before.values()) > 1.05 * BOUND
    for name, weight in effective(model).items():
        wanted = min(before[name], BOUND) if form == "clip" else BOUND
        assert largest(weight) == pytest.approx(wanted, rel=1e-5)
        torch.testing.assert_close(weight, raw[name] * (wanted / before[name]))
        if form == "clip" and before[name] < BOUND:
            assert torch.equal(weight, raw[name])
    assert largest_singular_values(model) == pytest.approx(before, rel=1e-5)


def test_by_default_it_is_on_all_projections_of_the_layers() -> None:
    model = CASE.model()
    names = add_spectral_norm(model)
    parts = (*(f"attention.self.{part}" for part in ("query", "key", "value")), "attention.output.dense")
    parts = (*parts, "intermediate.dense", "output.dense")
    assert names == [f"bert.encoder.layer.{layer}.{part}.weight" for layer in range(LAYERS) for part in parts]
    assert [item.name for item in normalised_matrices(model)] == names


def test_modules_are_chosen_by_name_and_in_several_calls() -> None:
    model = CASE.model()
    assert not has_spectral_norm(model)
    assert add_spectral_norm(model, bound=1.0, target_modules=["layer.1.attention.self.query"]) == [QUERY]
    queries = add_spectral_norm(model, bound=2.0, target_modules=["query"], exclude_modules=[QUERY[: -len(".weight")]])
    assert len(queries) == LAYERS - 1
    assert {round(largest(weight), 4) for weight in effective(model).values()} == {1.0, 2.0}
    assert len(model._forward_pre_hooks) == 1


@pytest.mark.parametrize(("bound", "scale"), [(3.0, 1.0), (3.5, 1.0), (1.5, 0.5), (math.inf, 1.0)])
def test_clipping_below_at_and_above_the_bound(bound: float, scale: float) -> None:
    weight = torch.diag(torch.tensor([3.0, 1.0, 0.5]))
    assert torch.equal(SpectralNorm(weight, bound, "clip", 1)(weight), scale * weight)


@pytest.mark.parametrize("form", ["clip", "divide"])
def test_zeros_stay_zeros_and_have_finite_gradients(form: str) -> None:
    weight = torch.zeros(3, 4, requires_grad=True)
    used = SpectralNorm(weight, 2.0, form, 1)(weight)
    used.sum().backward()
    assert not used.any()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())


def differences(function: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor) -> torch.Tensor:
    """The gradient by central differences."""
    gradient, step = torch.zeros_like(point), 1e-6
    for place in range(point.numel()):
        move = torch.zeros_like(point)
        move.view(-1)[place] = step
        gradient.view(-1)[place] = (function(point + move) - function(point - move)) / (2 * step)
    return gradient


@pytest.mark.parametrize("form", ["clip", "divide"])
@pytest.mark.parametrize("bound", [1.0, 10.0])
def test_gradients_are_those_of_finite_differences(form: str, bound: float) -> None:
    generator = torch.Generator().manual_seed(0)
    raw, mix = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    constant = min(1.0, bound / largest(raw))

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return (mix * weight).tanh().sum()

    def literal(weight: torch.Tensor) -> torch.Tensor:
        return loss(weight * (constant if form == "clip" else bound / torch.linalg.svdvals(weight)[0]))

    weight = raw.clone().requires_grad_()
    loss(SpectralNorm(raw, bound, form, 1)(weight)).backward()
    torch.testing.assert_close(weight.grad, differences(literal, raw), rtol=1e-6, atol=1e-8)


def test_one_step_of_the_power_iteration_per_pass_in_training_and_none_in_evaluation() -> None:
    model, batch = CASE.model(), CASE.batch()
    add_spectral_norm(model, bound=BOUND, exclude_modules=["key"])
    add_spectral_norm(model, bound=BOUND, iterations=3, target_modules=["key"])
    shake(model)
    before = vectors(model)
    first = model(**batch).logits
    assert torch.equal(model(**batch).logits, first)
    assert all(torch.equal(value, before[name]) for name, value in vectors(model).items())
    model.train()(**batch)
    for item in normalised_matrices(model):
        literal = before[item.name]
        for _ in range(3 if ".key." in item.name else 1):
            literal = item.raw.detach().T @ (item.raw.detach() @ literal)
            literal = literal / literal.norm()
        torch.testing.assert_close(item.norm.vector, literal)
        assert not torch.equal(item.norm.vector, before[item.name])


def test_the_iteration_follows_weights_that_change() -> None:
    model, batch = CASE.model(), CASE.batch()
    add_spectral_norm(model, bound=BOUND, target_modules=["query"])
    shake(model, 1.0)
    exact = {item.name: largest(item.raw) for item in normalised_matrices(model)}
    assert largest_singular_values(model) != pytest.approx(exact, rel=0.05)
    model.train()
    for _ in range(60):
        model(**batch)
    assert largest_singular_values(model) == pytest.approx(exact, rel=1e-3)
    restart_spectral_norm(model)
    assert largest_singular_values(model) == pytest.approx(exact, rel=1e-5)


def without_dropout() -> PreTrainedModel:
    return CASE.model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()


@pytest.mark.parametrize("form", ["clip", "divide"])
def test_gradient_checkpointing_changes_nothing(form: str) -> None:
    models = [without_dropout() for _ in range(2)]
    for model in models:
        add_spectral_norm(model, bound=BOUND, form=form)
        shake(model)
    models[1].gradient_checkpointing_enable()
    for model in models:
        model(**CASE.batch()).loss.backward()
    for one, other in zip(*map(normalised_matrices, models), strict=True):
        assert torch.equal(one.norm.vector, other.norm.vector)
        torch.testing.assert_close(one.raw.grad, other.raw.grad)


def test_two_passes_before_one_backward_pass() -> None:
    model = without_dropout()
    add_spectral_norm(model, bound=BOUND, form="divide")
    (model(**CASE.batch()).loss + model(**CASE.batch(1)).loss).backward()
    assert all(item.raw.grad is not None for item in normalised_matrices(model))


def test_an_optimizer_made_before_trains_the_raw_weights() -> None:
    model = without_dropout()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    add_spectral_norm(model, bound=BOUND)
    assert {id(parameter) for parameter in model.parameters()} == {id(value) for value in parameters.values()}
    before = parameters[QUERY].detach().clone()
    model(**CASE.batch()).loss.backward()
    gradient = parameters[QUERY].grad
    assert gradient is not None
    optimizer.step()
    torch.testing.assert_close(parameters[QUERY].detach(), before - 0.1 * gradient)
    remove_spectral_norm(model)
    assert all(model.get_parameter(name) is value for name, value in parameters.items())


@pytest.mark.parametrize("form", ["clip", "divide"])
def test_folding_changes_no_output_and_leaves_nothing_behind(form: str) -> None:
    model, plain, batch = CASE.model(), CASE.model(), CASE.batch()
    add_spectral_norm(model, bound=BOUND, form=form)
    shake(model)
    expected = model(**batch).logits
    assert not torch.equal(expected, plain(**batch).logits)
    remove_spectral_norm(model)
    assert torch.equal(model(**batch).logits, expected)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    for one, other in zip(model.modules(), plain.modules(), strict=True):
        assert type(one) is type(other)
        assert one.__dict__.keys() == other.__dict__.keys()
        assert not one._forward_pre_hooks
        assert not one._state_dict_hooks
        assert not one._load_state_dict_pre_hooks
        assert not one._load_state_dict_post_hooks
    remove_spectral_norm(model)


def test_without_folding_the_raw_weights_come_back() -> None:
    model, plain = CASE.model(), CASE.model()
    add_spectral_norm(model, bound=0.5)
    assert not torch.equal(model(**CASE.batch()).logits, plain(**CASE.batch()).logits)
    remove_spectral_norm(model, fold=False)
    assert torch.equal(model(**CASE.batch()).logits, plain(**CASE.batch()).logits)


def test_deep_copies_live_on_their_own() -> None:
    model, batch = CASE.model(), CASE.batch()
    add_spectral_norm(model, bound=BOUND)
    expected = model(**batch).logits
    twin = copy.deepcopy(model)
    shake(twin)
    remove_spectral_norm(model)
    assert torch.equal(model(**batch).logits, expected)
    different = twin(**batch).logits
    assert not torch.equal(different, expected)
    before = vectors(twin)
    twin.train()(**batch)
    assert not torch.equal(vectors(twin)[QUERY], before[QUERY])
    remove_spectral_norm(twin)
    assert not has_spectral_norm(twin)
    assert not twin._forward_pre_hooks


def test_conv1d() -> None:
    model = main_head("gpt2").model()
    names = add_spectral_norm(model, bound=2.0, form="divide")
    assert "transformer.h.0.attn.c_attn.weight" in names
    assert all(largest(weight) == pytest.approx(2.0, rel=1e-5) for weight in effective(model).values())
    ids = torch.tensor([[1, 2, 3]])
    expected = model(ids).logits
    remove_spectral_norm(model)
    assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("bound", [BOUND, 1.0])
def test_half_precision_is_normalised_in_float32(bound: float) -> None:
    model = CASE.model().to(torch.bfloat16)
    before = {item.name: item.parameter.detach().clone() for item in all_matrices(model)}
    add_spectral_norm(model, bound=bound)
    assert all(value.dtype == torch.float32 for value in vectors(model).values())
    for name, weight in effective(model).items():
        assert weight.dtype == torch.bfloat16
        scale = min(1.0, bound / largest(before[name]))
        torch.testing.assert_close(weight, (before[name].double() * scale).to(torch.bfloat16), rtol=2**-7, atol=0)
        assert largest(weight) <= bound * 1.002
        assert scale < 1 or torch.equal(weight, before[name])


def test_autocast_does_not_reach_the_singular_values() -> None:
    model = CASE.model()
    add_spectral_norm(model, bound=BOUND)
    expected = largest_singular_values(model), {name: weight.clone() for name, weight in effective(model).items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert largest_singular_values(model) == expected[0]
        assert all(torch.equal(weight, expected[1][name]) for name, weight in effective(model).items())
        model.train()(**CASE.batch()).loss.backward()
    assert largest_singular_values(model) == pytest.approx(expected[0], rel=1e-5)


def head_mask() -> dict[str, torch.Tensor]:
    """Removes the columns of one head from an output projection."""
    mask = torch.ones(HIDDEN, HIDDEN, dtype=torch.bool)
    mask[:, :8] = False
    return {OUTPUT: mask}


@pytest.mark.parametrize("masks_first", [True, False])
@pytest.mark.parametrize("masks_off_first", [True, False])
def test_weight_masks_act_on_the_raw_weights(masks_first: bool, masks_off_first: bool) -> None:
    model = without_dropout()
    parameter = model.get_parameter(OUTPUT)
    if masks_first:
        masks = add_weight_masks(model, head_mask())
        add_spectral_norm(model, bound=BOUND / 2)
    else:
        add_spectral_norm(model, bound=BOUND / 2)
        masks = add_weight_masks(model, head_mask())
        restart_spectral_norm(model)
    assert masks.matrices[0].parameter is parameter
    assert masks.matrices[0].name == OUTPUT
    assert not effective(model)[OUTPUT][:, :8].any()
    assert largest(effective(model)[OUTPUT]) == pytest.approx(BOUND / 2, rel=1e-5)
    model(**CASE.batch()).loss.backward()
    assert parameter.grad is not None
    assert not parameter.grad[:, :8].any()
    assert parameter.grad[:, 8:].any()
    expected = model.eval()(**CASE.batch()).logits
    if masks_off_first:
        masks.remove(restore=False)
        remove_spectral_norm(model)
    else:
        remove_spectral_norm(model)
        remove_weight_masks(model, restore=False)
    assert torch.equal(model(**CASE.batch()).logits, expected)
    assert not model.get_parameter(OUTPUT)[:, :8].any()
    assert largest(model.get_parameter(OUTPUT)) == pytest.approx(BOUND / 2, rel=1e-5)


def test_matrices_are_found_under_their_names_while_it_is_on() -> None:
    model = CASE.model()
    before = all_matrices(model)
    add_spectral_norm(model)
    for one, other in zip(before, all_matrices(model), strict=True):
        assert (one.name, one.module, one.input_axis) == (other.name, other.module, other.input_axis)
        assert one.parameter is other.parameter


def test_an_infinite_bound_only_follows() -> None:
    model, plain = CASE.model(), CASE.model()
    add_spectral_norm(model, bound=math.inf)
    assert torch.equal(model(**CASE.batch()).logits, plain(**CASE.batch()).logits)
    values = largest_singular_values(model)
    assert values[OUTPUT] == pytest.approx(largest(plain.get_parameter(OUTPUT)), rel=1e-5)
