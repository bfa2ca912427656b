"""What ε-gates close and count, against literal loops and models without the mappings."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy import Block, linear_at, weight_of
from hf_prune.gates import add_epsilon_gates, remove_epsilon_gates
from hf_prune.gates.residual_mappings import MappingKind
from tests.conformance.plans import difference, run
from tests.family_models import main_head, sample
from tests.gates.measured_bert import BERT, EPSILON, bert
from tests.gates.test_unit_gates import footprint


def literal_forwards(
    model: PreTrainedModel, mask: torch.Tensor, usage: dict[str, torch.Tensor], reduction: str = "batch"
) -> None:
    """Gates as the paper writes them, into a BERT's output projections, with all products at hand."""

    def gated(values: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
        largest = values.detach().abs() * mask[..., None]
        opened = largest.amax((1, 2), keepdim=True) > epsilon
        opened = opened.any(0, keepdim=True) if reduction == "batch" else opened
        return values * opened, opened.float().mean()

    def attention(block: Block, module: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        columns = torch.from_numpy(block.columns)
        total, opened = module.bias, []
        for unit in range(block.units):
            product = inputs[..., columns == unit] @ module.weight[:, columns == unit].T
            kept, share = gated(product, EPSILON["heads"])
            total = total + kept
            opened.append(share)
        usage[block.key] = usage.get(block.key, 0) + torch.stack(opened)
        return total

    def feed_forward(block: Block, module: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        kept, share = gated(F.linear(inputs, module.weight, module.bias), EPSILON["feed_forward"])
        usage[block.key] = usage.get(block.key, 0) + share[None]
        return kept

    for block in describe_model(model).blocks:
        module = linear_at(model.get_submodule(block.layer), block.output)
        module.forward = partial(attention if block.kind == "attention" else feed_forward, block, module)


@pytest.mark.parametrize(
    ("reduction", "checkpointing"), [("batch", None), ("example", None), ("batch", True), ("batch", False)]
)
def test_outputs_gradients_and_usage_are_those_of_a_literal_loop(reduction: str, checkpointing: bool | None) -> None:
    model, twin = bert(), bert()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    gates = add_epsilon_gates(model, EPSILON, reduction=reduction)
    usage: dict[str, torch.Tensor] = {}
    for seed in range(3):
        batch = BERT.batch(seed)
        literal_forwards(twin, batch["attention_mask"], usage, reduction)
        outputs, expected = model(**batch), twin(**batch)
        torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-4, atol=1e-4)
        outputs.loss.backward()
        expected.loss.backward()
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        if parameter.grad is not None or other.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-4)
    counted = gates.usage()
    shares = [usage[mapping.key] / 3 for mapping in gates.mappings]
    assert all(torch.equal(found.float(), share) for found, share in zip(counted, shares, strict=True))
    assert 0 < torch.cat(shares).mean() < 1
    assert all(values.isnan().all() for values in gates.mean_maxima())


def test_closed_mappings_get_no_gradient() -> None:
    model = bert()
    with add_epsilon_gates(model, {"heads": 1e9, "feed_forward": 1e9}):
        model(**BERT.batch()).loss.backward()
    layer = model.bert.encoder.layer[0]
    assert layer.attention.output.dense.bias.grad.any()
    for module in (layer.attention.output.dense, layer.attention.self.query, layer.output.dense):
        assert not module.weight.grad.any()
    assert not layer.output.dense.bias.grad.any()


def test_only_training_counts_unless_asked_and_gates_act_in_both() -> None:
    model, batch = bert().eval(), BERT.batch()
    dense = run(model, batch)
    gates = add_epsilon_gates(model)
    assert difference(run(model, batch), dense) == 0
    assert all(values.isnan().all() for values in gates.mean_maxima())
    gates.counts_evaluation = True
    run(model, batch)
    assert all(values.isfinite().all() for values in gates.mean_maxima())
    gates.counts_evaluation = False
    gates.gate(EPSILON)
    gated = run(model, batch)
    assert difference(gated, dense) > 0.1
    assert all(values.isnan().all() for values in gates.usage())
    assert difference(run(model.train(), batch), gated) == 0
    assert all(values.isfinite().all() for values in gates.usage())
    gates.record()
    assert difference(run(model.eval(), batch), dense) == 0


@pytest.mark.parametrize(("acts", "trained", "evaluated"), [("training", True, False), ("never", False, False)])
def test_gates_that_act_in_training_only_or_not_at_all(acts: str, trained: bool, evaluated: bool) -> None:
    model, batch = bert(), BERT.batch()
    dense = run(model, batch)
    gates = add_epsilon_gates(model, EPSILON)
    gates.acts = acts
    assert (difference(run(model, batch), dense) > 0.1) is trained
    assert all(values.isfinite().all().item() is trained for values in gates.usage())
    assert (difference(run(model.eval(), batch), dense) > 0.1) is evaluated
    assert all(float(count) == trained for count in gates.accumulators()[3::4])


def zeroed(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    """A copy without the sublayers of one kind."""
    model = copy.deepcopy(model)
    if kind == "layer":
        model.bert.encoder.layer = nn.ModuleList()
        return model
    for layer in model.bert.encoder.layer:
        module = layer.output.dense if kind == "feed_forward" else layer.attention.output.dense
        nn.init.zeros_(module.weight)
        if kind == "feed_forward":
            nn.init.zeros_(module.bias)
    return model


@pytest.mark.parametrize("kind", ["heads", "attention", "feed_forward", "layer"])
def test_everything_closed_is_a_model_without(kind: MappingKind) -> None:
    model, batch = bert().eval(), BERT.batch()
    dense = run(model, batch)
    expected = run(zeroed(model, kind), batch)
    assert difference(expected, dense) > 0.1
    for reduction in ("batch", "example"):
        with add_epsilon_gates(model, 1e9, kinds=[kind], reduction=reduction) as gates:
            assert difference(run(model, batch), expected) <= 1e-5
        assert gates.epsilon == {kind: 1e9}
    with add_epsilon_gates(model, 0.0, kinds=[kind]):
        assert difference(run(model, batch), dense) == 0


def test_a_closed_layer_passes_on_what_else_a_layer_returns() -> None:
    model = main_head("t5").model()  # whose first layer hands its position bias to the others
    batch = sample(model)
    with add_epsilon_gates(model, 1e9, kinds=["layer"]):
        closed = run(model, batch)
    for stack in (model.encoder, model.decoder):
        stack.block = nn.ModuleList()
    assert difference(closed, run(model, batch)) <= 1e-4


def test_closed_for_good_is_left_alone() -> None:
    model, batch = bert(), BERT.batch()
    gates = add_epsilon_gates(model, 1e9)
    masks = [torch.arange(mapping.gates) % 2 == 1 for mapping in gates.mappings]  # every second head, no feed-forward
    gates.close(masks)
    twin = copy.deepcopy(model)
    remove_epsilon_gates(twin)
    for block, mask in zip(describe_model(twin).blocks, masks, strict=True):
        if block.kind == "attention":
            weight = weight_of(twin.get_submodule(block.layer), block.output)
            weight.data[:, block.spread(mask)] = 0
    assert difference(run(model, batch), run(twin, batch)) <= 1e-5
    for mask, values in zip(masks, gates.usage(), strict=True):
        assert values[mask].tolist() == [0.0] * int(mask.sum())
        assert values[~mask].isnan().all()
    gates.record()
    run(model, batch)
    assert all(torch.equal(values.isfinite(), mask) for mask, values in zip(masks, gates.mean_maxima(), strict=True))
    gates.close([torch.ones_like(mask) for mask in masks])
    assert all(map(torch.equal, gates.kept, masks))


def test_leaves_no_trace() -> None:
    model, batch = bert(), BERT.batch()
    before, dense = footprint(model), run(model, batch)
    for kinds in (("heads", "feed_forward"), ("attention",), ("layer",)):
        with add_epsilon_gates(model, 1e9, kinds=kinds):
            assert footprint(model)[1:] == before[1:]
            assert difference(run(model, batch), dense) > 0.1
        assert footprint(model) == before
    add_epsilon_gates(model, EPSILON)
    remove_epsilon_gates(model)
    remove_epsilon_gates(model)
    assert footprint(model) == before
    assert difference(run(model, batch), dense) == 0


def test_a_twin_has_gates_of_its_own() -> None:
    model, batch = bert(), BERT.batch()
    gates = add_epsilon_gates(model)
    twin = copy.deepcopy(model)
    run(twin, batch)
    assert all(values.isnan().all() for values in gates.mean_maxima())
    remove_epsilon_gates(twin)
    gates.gate(1e9)
    assert difference(run(twin, batch), run(model, batch)) > 0.1
