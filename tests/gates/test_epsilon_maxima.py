"""What ε-gates measure, against materialised products."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy import Block
from hf_prune.gates import add_epsilon_gates
from tests.family_models import PADDING, SAMPLES, heads_of, main_head, sample
from tests.gates.measured_bert import BERT, bert, captured, expected_maxima, products
from tests.small_models import Batch

# Fused and unfused, Conv1D, KV groups, flattened positions, encoders with decoders, shared layers, images beside text.
FAMILIES = ("bert", "albert", "bart", "clip", "codegen", "gpt2", "llama", "opt", "t5", "wav2vec2")


def with_masks(model: PreTrainedModel) -> Batch:
    """A batch with padding wherever a model can be told of it."""
    batch = sample(model)
    if "decoder_input_ids" in batch:
        batch["decoder_attention_mask"] = (batch["decoder_input_ids"] != PADDING).long()
        batch["decoder_attention_mask"][0, -2:] = 0  # not what the encoder has
    if model.config.model_type == "wav2vec2":
        batch["attention_mask"] = torch.ones(batch["input_values"].shape).long()
        batch["attention_mask"][1, 200:] = 0
    return batch


def valid(model: PreTrainedModel, block: Block, batch: Batch) -> torch.Tensor | None:
    """Which positions of a block count, by what the batch says; None for all."""
    if model.config.model_type == "wav2vec2":
        frames = int(model._get_feat_extract_output_lengths(SAMPLES))
        return model._get_feature_vector_attention_mask(frames, batch["attention_mask"]).bool()
    if block.layer.startswith("vision_model"):
        return None
    decoder = ".decoder." in f".{block.layer}" and "decoder_attention_mask" in batch
    return batch["decoder_attention_mask" if decoder else "attention_mask"].bool()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_maxima_of_every_family(model_type: str) -> None:
    head = heads_of("clip")[0] if model_type == "clip" else main_head(model_type)
    torch.manual_seed(0)  # of dropout, which decides whether a largest entry is at padding
    model = head.model().train()
    batch = with_masks(model)
    with captured(model) as runs, add_epsilon_gates(model) as gates, torch.no_grad():
        model(**batch)
        measured = gates.mean_maxima()
    blocks = describe_model(model).blocks
    assert [mapping.key for mapping in gates.mappings] == [block.key for block in blocks]
    moved = 0
    for block, values in zip(blocks, measured, strict=True):
        assert values.dtype == torch.float64
        mask = valid(model, block, batch)
        expected = expected_maxima(model, block, runs[block.key], mask)
        torch.testing.assert_close(values.float(), expected, rtol=1e-5, atol=1e-6)
        moved += bool((expected_maxima(model, block, runs[block.key], None) > expected * 1.0001).any())
    assert moved  # in some block the largest entry is at a padding position


def test_the_largest_entry_of_each_example() -> None:
    model = main_head("opt").model().train()  # whose feed-forward sublayers have all positions in one axis
    batch = sample(model)
    with captured(model) as runs, add_epsilon_gates(model, reduction="example") as gates:
        model(**batch)
        together, means = gates.batch_maxima(), gates.mean_maxima()
    for block, values, mean in zip(describe_model(model).blocks, together, means, strict=True):
        [(inputs, output)] = runs[block.key]
        rows = (products(model, block, inputs) if block.kind == "attention" else output[None]).abs().amax(-1)
        rows = rows.reshape(len(rows), *batch["attention_mask"].shape) * batch["attention_mask"]
        torch.testing.assert_close(values, rows.amax(-1).T, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mean, values.double().mean(0))


@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_maxima_are_counted_once_per_forward_pass(checkpointing: bool | None) -> None:
    model = bert()
    plain = []
    for seed in range(2):
        with add_epsilon_gates(model) as gates:
            model(**BERT.batch(seed))
        plain.append(gates.mean_maxima())
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    with captured(model) as runs, add_epsilon_gates(model) as gates:
        for seed in range(2):
            model(**BERT.batch(seed)).loss.backward()
        means = gates.mean_maxima()
        assert all(float(count) == 2 for count in gates.accumulators()[1::4])
    assert {len(item) for item in runs.values()} == {2 if checkpointing is None else 4}
    for mean, one, other in zip(means, *plain, strict=True):
        torch.testing.assert_close(mean, (one + other) / 2)


def test_what_is_recomputed_after_a_statistic_was_read_is_not_counted() -> None:
    model = bert()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    gates = add_epsilon_gates(model)
    loss = model(**BERT.batch()).loss
    before = gates.mean_maxima()
    loss.backward()
    assert all(map(torch.equal, gates.mean_maxima(), before))
    assert all(float(count) == 1 for count in gates.accumulators()[1::4])


def test_maxima_of_whole_attention_sublayers_and_layers() -> None:
    model, batch = bert(), BERT.batch()
    valid_rows = batch["attention_mask"].bool()
    states = model.bert(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states
    with captured(model) as runs, add_epsilon_gates(model, kinds=("attention", "feed_forward")) as gates:
        model(**batch)
        values = dict(zip([mapping.key for mapping in gates.mappings], gates.mean_maxima(), strict=True))
    for block in describe_model(model).attentions:
        total = products(model, block, runs[block.key][0][0]).sum(0)
        torch.testing.assert_close(values[block.key].float(), total[valid_rows].abs().max()[None], rtol=1e-4, atol=0)
    with add_epsilon_gates(model, kinds=["layer"]) as gates:
        model(**batch)
        found = gates.mean_maxima()
    for index, value in enumerate(found):
        expected = (states[index + 1] - states[index])[valid_rows].abs().max()
        torch.testing.assert_close(value.float(), expected[None].detach())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_measured_in_float32(kind: torch.dtype) -> None:
    model = bert().to(kind)
    with captured(model) as runs, add_epsilon_gates(model) as gates, torch.no_grad():
        model(**BERT.batch())
        measured = gates.mean_maxima()
    twin = copy.deepcopy(model).float()
    for block, values in zip(describe_model(twin).blocks, measured, strict=True):
        inputs, output = runs[block.key][0]
        expected = expected_maxima(
            twin, block, [(inputs.float(), output.float())], BERT.batch()["attention_mask"].bool()
        )
        torch.testing.assert_close(values.float(), expected, rtol=1e-5, atol=1e-6)


def test_autocast_does_not_reach_the_measuring() -> None:
    model = bert()
    with captured(model) as runs, add_epsilon_gates(model, kinds=["heads"]) as gates:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            model(**BERT.batch())
        measured = gates.mean_maxima()
    block = describe_model(model).attentions[0]
    inputs = runs[block.key][0][0].float()
    expected = expected_maxima(model, block, [(inputs, inputs)], BERT.batch()["attention_mask"].bool())
    torch.testing.assert_close(measured[0].float(), expected, rtol=1e-5, atol=1e-6)
