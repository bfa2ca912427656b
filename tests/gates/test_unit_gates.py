"""Gates do what a head mask did, and leave no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.bert import modeling_bert

from hf_prune import PruningError, describe_model
from hf_prune.gates import (
    UnitGates,
    add_filter_gates,
    add_head_gates,
    gate_columns,
    remove_filter_gates,
    remove_head_gates,
)
from tests.conformance.plans import difference, run
from tests.small_models import CHOICES, FILTERS, HEADS, case

BERT = case("bert", "classification")
HEAD_VALUES = [torch.tensor(row) for row in ([0.0, 1.0, 0.5, -1.0], [1.0] * 4, [2.0, 0.0, 0.0, 0.3])]


def footprint(model: PreTrainedModel) -> tuple:
    """Everything that a gate could leave behind."""
    modules = [
        (name, len(module._forward_pre_hooks), len(module._forward_hooks), sorted(vars(module)))
        for name, module in model.named_modules()
    ]
    return modules, list(model.state_dict()), [name for name, _ in model.named_parameters()]


def test_head_gates_scale_attention_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition that version 4's head_mask had."""
    model, batch = BERT.model("eager"), BERT.batch()
    with add_head_gates(model, HEAD_VALUES):
        gated = run(model, batch)
    masks = {
        id(layer.attention.self): value for layer, value in zip(model.bert.encoder.layer, HEAD_VALUES, strict=True)
    }

    def masked_attention(module, query, key, value, mask, scaling, dropout=0.0, **kwargs):
        scores = query @ key.transpose(2, 3) * scaling + mask
        probabilities = scores.softmax(-1) * masks[id(module)][:, None, None]
        return (probabilities @ value).transpose(1, 2).contiguous(), probabilities

    monkeypatch.setattr(modeling_bert, "eager_attention_forward", masked_attention)
    by_probabilities = run(model, batch)
    assert difference(by_probabilities, gated) <= 1e-5
    monkeypatch.undo()
    assert difference(run(model, batch), gated) > 0.1


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_gates_equal_scaled_columns_for_every_attention_backend(model_type: str) -> None:
    item = case(model_type, "classification")
    for attention in ("eager", "sdpa"):
        model, batch = item.model(attention), item.batch()
        generator = torch.Generator().manual_seed(0)
        filters = [torch.randn(FILTERS, generator=generator) for _ in range(3)]
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            blocks = describe_model(model)
            for blocks_of_kind, values in ((blocks.attentions, HEAD_VALUES), (blocks.feed_forwards, filters)):
                for block, value in zip(blocks_of_kind, values, strict=True):
                    weight = scaled.get_submodule(block.layer).get_submodule(block.output.path).weight
                    weight *= value.repeat_interleave(block.output.width)
        with add_head_gates(model, HEAD_VALUES), add_filter_gates(model, filters):
            assert difference(run(model, batch), run(scaled, batch)) <= 1e-4


def test_gates_of_ones_change_nothing_and_are_removed_without_trace() -> None:
    model, batch = BERT.model(), BERT.batch()
    before, dense = footprint(model), run(model, batch)
    add_head_gates(model)
    add_filter_gates(model)
    assert difference(run(model, batch), dense) == 0
    assert footprint(model)[1:] == before[1:]
    remove_filter_gates(model)
    remove_head_gates(model)
    assert footprint(model) == before
    remove_head_gates(model)
    remove_filter_gates(model)
    assert footprint(model) == before


def test_context_manager_removes_gates_after_an_error() -> None:
    model = BERT.model()
    before = footprint(model)
    blocks = describe_model(model).blocks
    with pytest.raises(KeyboardInterrupt), UnitGates(model, blocks, [torch.zeros(block.units) for block in blocks]):
        raise KeyboardInterrupt
    assert footprint(model) == before


def test_leaving_the_context_of_added_gates_lets_new_ones_in() -> None:
    model = BERT.model()
    before = footprint(model)
    with add_head_gates(model, HEAD_VALUES):
        pass
    assert footprint(model) == before
    add_head_gates(model, HEAD_VALUES)
    remove_head_gates(model)
    assert footprint(model) == before


def test_values_can_be_changed_and_take_gradients() -> None:
    model, batch = BERT.model(), BERT.batch()
    dense = run(model, batch)
    gates = add_head_gates(model)
    assert [tuple(value.shape) for value in gates.values] == [(HEADS,)] * 3
    gates.gates[0].value = torch.ones(HEADS, requires_grad=True)
    model(**batch).loss.backward()
    assert gates.gates[0].value.grad.abs().min() > 0
    gates.gates[2].value = torch.zeros(HEADS)
    assert difference(run(model, batch), dense) > 0.1


@pytest.mark.parametrize("task", ["classification", "choices"])
def test_gates_per_example(task: str) -> None:
    item = case("bert", task)
    model, batch = item.model(), item.batch()
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(4, HEADS, generator=generator) for _ in range(3)]
    with add_head_gates(model, values):
        [together] = run(model, batch)
    for example in range(4):
        alone = {name: value[example : example + 1] for name, value in batch.items()}
        with add_head_gates(model, [value[example] for value in values]):
            [expected] = run(model, alone)
        assert (together[example] - expected[0]).abs().max() <= 1e-5


def test_gates_on_rows_that_are_flattened() -> None:
    gate = torch.tensor([[1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 0.0, 0.0]])
    inputs = torch.ones(2 * CHOICES, 4)
    found = gate_columns(inputs, gate)
    assert found[:CHOICES].tolist() == [[1.0, 1.0, 2.0, 2.0]] * CHOICES
    assert found[CHOICES:].tolist() == [[3.0, 3.0, 0.0, 0.0]] * CHOICES
    assert gate_columns(inputs.bfloat16(), gate[0]).dtype == torch.bfloat16


def test_gated_model_can_be_copied() -> None:
    model, batch = BERT.model(), BERT.batch()
    add_head_gates(model, HEAD_VALUES)
    twin = copy.deepcopy(model)
    assert difference(run(twin, batch), run(model, batch)) == 0


def test_twin_has_gates_of_its_own() -> None:
    model, batch = BERT.model(), BERT.batch()
    dense = run(model, batch)
    add_head_gates(model, HEAD_VALUES)
    twin = copy.deepcopy(model)
    remove_head_gates(twin)
    assert difference(run(twin, batch), dense) == 0
    assert difference(run(model, batch), dense) > 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (HEAD_VALUES[:2], "gates for 2 blocks, but the model has 3"),
        ([torch.ones(3), *HEAD_VALUES[1:]], r"encoder\.layer\.0\.attention: gates of shape \(3,\) do not fit 4 units"),
        ([torch.ones(4, 1, 4), *HEAD_VALUES[1:]], r"expected \[4\] or \[examples, 4\]"),
        ([torch.tensor(1.0), *HEAD_VALUES[1:]], r"gates of shape \(\) do not fit"),
    ],
)
def test_values_that_do_not_fit(values: list[torch.Tensor], message: str) -> None:
    model = BERT.model()
    before = footprint(model)
    with pytest.raises(PruningError, match=message):
        add_head_gates(model, values)
    assert footprint(model) == before


def test_gates_twice() -> None:
    model = BERT.model()
    add_head_gates(model)
    with pytest.raises(PruningError, match=r"already has head gates\. Remove them first"):
        add_head_gates(model)
    add_filter_gates(model)
    with pytest.raises(PruningError, match="already has filter gates"):
        add_filter_gates(model)
