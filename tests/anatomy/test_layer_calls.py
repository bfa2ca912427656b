"""How a model calls its layers, and which positions of their output it reads."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy.layer_calls import positions_read, record_layer_calls
from hf_prune.calibration import without_labels
from tests.small_models import CASES, Case, case


def own_forwards(model: PreTrainedModel) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("item", [case for case in CASES if case.task in ("bare", "cross_attention")], ids=str)
def test_replayed_calls_give_the_models_hidden_states(item: Case, attention: str) -> None:
    model, batch = item.model(attention), without_labels(item.batch())
    layers = describe_model(model).layers
    with torch.no_grad():
        hidden, calls = record_layer_calls(model, layers, batch)
        expected = model(**batch, use_cache=False, output_hidden_states=True).hidden_states
        assert len(calls) == len(layers) == len(expected) - 1
        assert torch.equal(hidden, expected[0])
        for name, call, after in zip(layers, calls, expected[1:], strict=True):
            hidden = call.run(model.get_submodule(name), hidden)
            assert torch.allclose(hidden, after, atol=1e-6)
    assert own_forwards(model) == []


@pytest.mark.parametrize("item", CASES, ids=str)
def test_positions_that_the_head_reads(item: Case) -> None:
    """Found here by changing the last layer's output in one position at a time."""
    if item.task == "choices":
        first, examples = item.batch()["input_ids"].flatten(0, 1), 12
    else:
        first, examples = item.batch()["input_ids"], 4
    model, batch = item.model(), without_labels(item.batch())
    layers = describe_model(model).layers
    found = positions_read(model, layers, batch)
    assert found.shape == first.shape
    last = model.get_submodule(layers[-1])
    with torch.no_grad():
        before = list(model(**batch, use_cache=False).to_tuple())
        for position in range(first.shape[1]):

            def shift(module: object, args: object, output: torch.Tensor, position: int = position) -> torch.Tensor:
                changed = output.clone()
                changed[:, position] += torch.linspace(-1, 1, changed.shape[-1])
                return changed

            handle = last.register_forward_hook(shift)
            after = list(model(**batch, use_cache=False).to_tuple())
            handle.remove()
            matters = any((one != other).any() for one, other in zip(before, after, strict=True))
            assert found[:, position].tolist() == [matters] * examples


def test_models_are_restored_after_an_interruption() -> None:
    item = case("bert", "classification")
    model, batch = item.model(), without_labels(item.batch())
    layers = describe_model(model).layers
    model.bert.embeddings.register_forward_hook(lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    for act in (record_layer_calls, positions_read):
        with pytest.raises(KeyboardInterrupt):
            act(model, layers, batch)
        assert own_forwards(model) == []
