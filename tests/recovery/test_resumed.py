"""Passes that start in the middle of a model give what whole passes give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy.layer_calls import LayerCall, Segment, replaced_forwards, run_plainly
from hf_prune.anatomy.segments import find_segments
from hf_prune.calibration import CalibrationData, without_labels
from hf_prune.recovery.resumed import START, resumed, resumes_exactly, starting_from
from hf_prune.scores.gradients import frozen, some_examples
from tests.small_models import Batch, case
from tests.task_models import TASK_MODELS

RESUMING = ("bert", "choices", "llama", "gpt2", "opt", "vit", "mixtral", "wav2vec2, classification")


def model_and_batch(name: str) -> tuple[PreTrainedModel, Batch]:
    if name in ("bert", "choices"):
        item = case("bert", "classification" if name == "bert" else name)
        return item.model().double(), item.batch()
    model = TASK_MODELS[name].model()
    return model, CalibrationData([TASK_MODELS[name].example()], model).first()


def segments_of(model: PreTrainedModel, batch: Batch) -> tuple[Segment, ...]:
    with torch.no_grad():
        return find_segments(model, describe_model(model).layers, without_labels(batch))


@contextmanager
def runs_counted(model: PreTrainedModel, layers: tuple[str, ...]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """The layers that really run, with the hidden states that enter them."""
    seen: list[tuple[str, torch.Tensor]] = []

    def wrap(name: str, own: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            seen.append((name, LayerCall.of(name, args, kwargs)[1]))
            return own(*args, **kwargs)

        return forward

    with replaced_forwards(model, layers, wrap):
        yield seen


@pytest.mark.parametrize("name", RESUMING)
def test_outputs_are_those_of_whole_passes(name: str) -> None:
    model, batch = model_and_batch(name)
    [segment] = segments_of(model, batch)
    with frozen(model), torch.no_grad(), runs_counted(model, segment.layers) as seen:
        assert resumes_exactly(model, segment, without_labels(batch))
        seen.clear()
        whole = run_plainly(model, batch)
        entered = dict(seen)
        for place, layer in enumerate(segment.layers[1:], start=1):
            with resumed(model, segment, layer):
                seen.clear()
                again = run_plainly(model, starting_from(batch, entered[layer]))
            assert [ran for ran, _ in seen] == list(segment.layers[place:])
            assert len(again) == len(whole) > 0
            assert all(torch.allclose(one, other, rtol=1e-10) for one, other in zip(again, whole, strict=True))


@pytest.mark.parametrize("name", ["bert", "choices", "llama"])
def test_examples_keep_their_hidden_states(name: str) -> None:
    """A batch may be taken apart: what it starts from is taken apart with it."""
    model, batch = model_and_batch(name)
    [segment] = segments_of(model, batch)
    layer = segment.layers[-1]
    with frozen(model), torch.no_grad():
        with runs_counted(model, (layer,)) as seen:
            model(**batch)
        held = starting_from(batch, seen[0][1])
        with resumed(model, segment, layer):
            for index in range(2):
                found = model(**some_examples(held, index, index + 1)).logits
                expected = model(**some_examples(batch, index, index + 1)).logits
                assert torch.allclose(found, expected, rtol=1e-6)


def test_a_batch_without_hidden_states_runs_whole() -> None:
    model, batch = model_and_batch("bert")
    [segment] = segments_of(model, batch)
    with frozen(model), torch.no_grad():
        expected = model(**batch).logits
        with resumed(model, segment, segment.layers[1]):
            model(**starting_from(batch, torch.zeros(4, 9, 32).double()))
            assert torch.equal(model(**batch).logits, expected)
        assert not model._forward_pre_hooks
        assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_hidden_states_that_belong_to_no_example() -> None:
    _, batch = model_and_batch("bert")
    assert starting_from(batch, torch.zeros(7, 32)) is batch
    assert starting_from(batch, torch.zeros(8, 32))[START].shape == (4, 2, 32)


def test_where_more_than_hidden_states_is_handed_on() -> None:
    """T5's layers hand on position biases, ALBERT's are one, and this head mixes the outputs of all layers."""
    for name in ("t5", "albert"):
        model, batch = model_and_batch(name)
        inputs = without_labels(batch)
        with frozen(model):
            assert not any(resumes_exactly(model, segment, inputs) for segment in segments_of(model, batch))
    item = TASK_MODELS["wav2vec2, classification"]
    model, inputs = item.model(use_weighted_layer_sum=True, num_hidden_layers=3), without_labels(item.example())
    [segment] = segments_of(model, inputs)
    assert segment.values is not None
    with frozen(model):
        assert not resumes_exactly(model, segment, inputs)
