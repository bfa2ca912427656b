"""How a model calls its layers, which of them follow each other, and which positions of their output it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy.layer_calls import LayerCall, Segment, layer_shapes, positions_read, record_calls
from hf_prune.anatomy.segments import find_segments
from hf_prune.calibration import without_labels
from hf_prune.errors import PruningError, UnsupportedModelError
from tests.family_models import heads_of, main_head, sample
from tests.small_models import CASES, Case, case


def own_forwards(model: PreTrainedModel) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def only_segment(model: PreTrainedModel, batch: dict[str, Any]) -> Segment:
    with torch.no_grad():
        [segment] = find_segments(model, describe_model(model).layers, batch)
    return segment


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("item", [case for case in CASES if case.task in ("bare", "cross_attention")], ids=str)
def test_replayed_calls_give_the_models_hidden_states(item: Case, attention: str) -> None:
    model, batch = item.model(attention), without_labels(item.batch())
    segment = only_segment(model, batch)
    assert segment.layers == describe_model(model).layers
    assert segment.values is not None  # nothing in these models' calls depends on what the layers compute
    with torch.no_grad():
        [(hidden, calls)] = record_calls(model, segment, batch)
        expected = model(**batch, use_cache=False, output_hidden_states=True).hidden_states
        assert len(calls) == len(segment.layers) == len(expected) - 1
        assert torch.equal(hidden, expected[0])
        for name, call, after in zip(segment.layers, calls, expected[1:], strict=True):
            assert call.layer == name
            hidden = call.run(model.get_submodule(name), hidden)
            assert torch.allclose(hidden, after, atol=1e-6)
    assert own_forwards(model) == []


@pytest.mark.parametrize("model_type", ["t5", "bart", "clip", "albert", "gpt2"])
def test_every_segment_starts_and_ends_where_the_model_does(model_type: str) -> None:
    """Replayed from what is recorded at its start, a segment gives what its last layer gives in the model."""
    model = heads_of(model_type)[0].model()
    batch = sample(model)
    layers = describe_model(model).layers
    left: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for name in layers:

        def keep(module: object, args: object, output: Any, store: list[torch.Tensor] = left[name]) -> None:
            store.append((output if isinstance(output, torch.Tensor) else output[0]).clone())

        model.get_submodule(name).register_forward_hook(keep)
    with torch.no_grad():
        model(**batch)
        kept = {name: list(store) for name, store in left.items()}
        for segment in find_segments(model, layers, batch):
            entries = record_calls(model, segment, batch)
            assert len(entries) == (segment.calls if segment.shared else 1)
            for run, (hidden, calls) in enumerate(entries):
                for call in calls:
                    hidden = call.run(model.get_submodule(call.layer), hidden)
                assert torch.allclose(hidden, kept[calls[-1].layer][run], atol=1e-5)


def test_layers_are_skipped_only_where_their_calls_allow_it() -> None:
    values = {}
    for model_type in ("gpt2", "t5", "albert", "deberta"):
        model = main_head(model_type).model()
        with torch.no_grad():
            segments = find_segments(model, describe_model(model).layers, sample(model))
        values[model_type] = [segment.values for segment in segments]
    # T5's first layer makes the position bias of the others; ALBERT's runs start from what the run before computes.
    assert values == {"gpt2": [0], "t5": [None, None], "albert": [None], "deberta": [2]}


def test_calls_are_taken_apart_and_put_together() -> None:
    hidden, mask = torch.ones(2, 3, 4), torch.zeros(2, 3)
    for args, kwargs in (
        ((hidden, mask), {"flag": True}),
        ((), {"hidden_states": hidden, "attention_mask": mask}),
        ((), {"x": hidden}),
        ((None,), {"attention_mask": mask, "hidden_states": hidden}),
    ):
        call, found = LayerCall.of("layer", args, kwargs)
        assert found is hidden

        def layer(*given: Any, args: Any = args, kwargs: Any = kwargs, **named: Any) -> Any:
            assert len(given) == len(args)
            assert named.keys() == kwargs.keys()
            return (next(v for v in (*given, *named.values()) if isinstance(v, torch.Tensor) and v.dim() == 3), None)

        assert torch.equal(call.run(layer, hidden + 1), hidden + 1)
    with pytest.raises(UnsupportedModelError, match=r"encoder\.layer\.0 is called without a tensor"):
        LayerCall.of("encoder.layer.0", (None,), {"flag": True})


def test_shapes_of_what_enters_each_layer() -> None:
    model = main_head("t5").model()
    batch = sample(model)
    batch["decoder_input_ids"] = batch["decoder_input_ids"][:, :4]
    layers = describe_model(model).layers
    with torch.no_grad():
        shapes = layer_shapes(model, layers, batch)
    assert {name: shape[1] for name, shape in shapes.items()} == {
        name: 4 if name.startswith("decoder") else 9 for name in layers
    }


def test_batches_that_run_differently_are_refused() -> None:
    model = main_head("gpt2").model()
    segment = only_segment(model, sample(model))
    with pytest.raises(PruningError, match="ran 3 times on one batch and 4 times on the first"):
        record_calls(model, Segment(segment.layers, 4, 0), sample(model))


@pytest.mark.parametrize("item", CASES, ids=str)
def test_positions_that_the_head_reads(item: Case) -> None:
    """Found here by changing the last layer's output in one position at a time."""
    if item.task == "choices":
        first, examples = item.batch()["input_ids"].flatten(0, 1), 12
    else:
        first, examples = item.batch()["input_ids"], 4
    model, batch = item.model(), without_labels(item.batch())
    segment = only_segment(model, batch)
    found = positions_read(model, segment, batch)
    assert found.shape == first.shape
    last = model.get_submodule(segment.layers[-1])
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


def test_positions_that_two_towers_read() -> None:
    model = heads_of("clip")[0].model()
    batch = sample(model)
    with torch.no_grad():
        segments = find_segments(model, describe_model(model).layers, batch)
    found = {segment.layers[0].split(".")[0]: positions_read(model, segment, batch) for segment in segments}
    ends = batch["attention_mask"].sum(1) - 1  # texts end with the token that stands for all of them
    assert torch.equal(found["text_model"], torch.arange(9)[None] == ends[:, None])
    assert found["vision_model"].sum(1).tolist() == [1] * len(ends)
    assert found["vision_model"][:, 0].all()


def test_what_is_written_into_the_stream_between_two_layers_starts_a_segment() -> None:
    item = case("bert", "bare")
    model, batch = item.model(), without_labels(item.batch())
    layers = only_segment(model, batch).layers
    model.get_submodule(layers[1]).register_forward_pre_hook(lambda module, args: (args[0].add_(1), *args[1:]))
    with torch.no_grad():
        segments = find_segments(model, layers, batch)
    assert [segment.layers for segment in segments] == [layers[:1], layers[1:]]


def test_models_are_restored_after_an_interruption() -> None:
    item = case("bert", "classification")
    model, batch = item.model(), without_labels(item.batch())
    segment = only_segment(model, batch)
    model.bert.embeddings.register_forward_hook(lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    for act in (record_calls, positions_read):
        with pytest.raises(KeyboardInterrupt):
            act(model, segment, batch)
        assert own_forwards(model) == []
    with pytest.raises(KeyboardInterrupt):
        find_segments(model, segment.layers, batch)
    assert own_forwards(model) == []
