"""How many tokens every block sees: of texts the mean of the data, of images and sounds what their sizes give."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import hf_prune.budget.lengths
from hf_prune import FisherPruningConfig, UnsupportedModelError, describe_model, prune_model
from hf_prune.anatomy import Block, ModelAnatomy, read_blocks
from hf_prune.budget import Lengths, data_lengths, flops_per_unit, lengths_of, total_flops
from hf_prune.budget.block_lengths import BlockLength
from hf_prune.budget.positions import position_count
from hf_prune.calibration import CalibrationData
from tests.small_models import Batch, case
from tests.task_models import CONTRASTIVE, TASK_MODELS, noise

# Valid source tokens of the translations: 8, 3 and 7; target tokens: 6, 2 and 5.
SOURCE, TARGET = 6, 5


def of_data(model: PreTrainedModel, batch: Batch, sequence_length: int | None = None) -> Lengths:
    return data_lengths(model, describe_model(model), CalibrationData([batch], model), sequence_length)


def by_part(model: PreTrainedModel, lengths: Lengths) -> dict[str, set[tuple[int, int]]]:
    """Queries and keys of the blocks, by the stack that they are in and whether they are cross-attention."""

    def part(block: Block) -> str:
        side = "decoder" if "decoder" in block.stack else "vision" if "vision" in block.stack else "rest"
        return "cross" if lengths.of(block).cross else side

    found: dict[str, set[tuple[int, int]]] = {}
    for block in describe_model(model).blocks:
        found.setdefault(part(block), set()).add((lengths.of(block).queries, lengths.of(block).keys))
    return found


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_and_decoder_have_the_mean_lengths_of_their_texts(name: str) -> None:
    item = TASK_MODELS[name]
    model = item.model()
    lengths = of_data(model, item.example())
    assert lengths.tokens == SOURCE
    expected = {"rest": {(SOURCE, SOURCE)}, "decoder": {(TARGET, TARGET)}, "cross": {(TARGET, SOURCE)}}
    assert by_part(model, lengths) == expected
    chosen = of_data(model, item.example(), sequence_length=9)
    assert by_part(model, chosen) == {part: {(9, 9)} for part in expected}


def test_sounds_have_their_own_length() -> None:
    item = TASK_MODELS["whisper"]
    model = item.model()
    lengths = of_data(model, item.example())
    assert lengths.tokens == TARGET
    assert by_part(model, lengths) == {"rest": {(10, 10)}, "decoder": {(TARGET, TARGET)}, "cross": {(TARGET, 10)}}

    item = TASK_MODELS["wav2vec2, ctc sum"]
    model = item.model()
    frames = model(item.example()["input_values"][:1]).logits.shape[1]
    lengths = of_data(model, item.example())
    assert lengths.tokens == frames
    assert by_part(model, lengths) == {"rest": {(frames, frames)}}


def test_images_have_a_token_for_each_patch_and_one_for_the_class() -> None:
    for name in ("vit", "clip"):
        item = TASK_MODELS[name]
        model = item.model()
        assert of_data(model, item.example()) == lengths_of(model, describe_model(model), 77)
        assert of_data(model, item.example()).tokens == 5
        assert {queries for part in by_part(model, of_data(model, item.example())).values() for queries in part} == {
            (5, 5)
        }


def test_two_towers_read_at_two_lengths() -> None:
    item = CONTRASTIVE["clip"]
    model, batch = item.model(), item.example()
    batch["attention_mask"] = torch.tensor([[1] * 8, [1] * 4 + [0] * 4, [1] * 6 + [0] * 2])
    assert by_part(model, of_data(model, batch)) == {"rest": {(6, 6)}, "vision": {(5, 5)}}
    # A length beyond the positions of the texts means texts as long as can be.
    assert position_count(model) == 16
    assert by_part(model, lengths_of(model, describe_model(model), 128)) == {"rest": {(16, 16)}, "vision": {(5, 5)}}


def test_cross_attention_to_what_the_data_brings() -> None:
    item = case("bert", "cross_attention")
    model = item.model()
    lengths = of_data(model, item.batch())
    assert by_part(model, lengths) == {"rest": {(8, 8)}, "cross": {(8, 6)}}


def test_a_text_model_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    item = TASK_MODELS["llama"]
    model = item.model()
    data, anatomy = CalibrationData([item.example()], model), describe_model(model)
    monkeypatch.setattr(type(model), "forward", lambda self, *args, **kwargs: pytest.fail("the model was run"))
    monkeypatch.setattr(data, "_accepted", set(item.example()))
    assert data_lengths(model, anatomy, data) == Lengths(7, {}, frozenset({"model.layers"}))


def test_a_model_that_cannot_be_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*args: Any) -> Batch:
        raise UnsupportedModelError("There is no example.")

    monkeypatch.setattr(hf_prune.budget.lengths, "example_batch", fail)
    for name, warned in (("t5", False), ("whisper", True)):
        model = TASK_MODELS[name].model()
        with caplog.at_level(logging.WARNING, logger="hf_prune"):
            lengths = lengths_of(model, describe_model(model), 12)
        assert by_part(model, lengths) == {"rest": {(12, 12)}, "decoder": {(12, 12)}}
        assert ("There is no example. Costs are counted as if every block saw 12 tokens" in caplog.text) is warned


def test_windows_limit_what_is_attended_to() -> None:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(
        image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4, mlp_ratio=2.0
    )
    model = SwinModel(config).eval()
    # Read without the proof that models outside of the table need: only what runs is counted here.
    blocks = tuple(read_blocks(model))
    anatomy = ModelAnatomy("swin", tuple(dict.fromkeys(block.layer for block in blocks)), blocks)
    lengths = lengths_of(model, anatomy)
    first, second = anatomy.attentions
    assert lengths.of(first) == BlockLength(64, 64, 16)
    assert lengths.of(second) == BlockLength(16, 16, 16)


@pytest.mark.parametrize("name", ["gpt2", "t5", "whisper", "vit", "wav2vec2, ctc sum", "mixtral"])
def test_a_budget_holds_at_the_lengths_of_the_data(name: str) -> None:
    item = TASK_MODELS[name]
    model, batch = item.model(), item.example()
    anatomy, lengths = describe_model(model), of_data(model, batch)
    config = FisherPruningConfig(flops=0.6, recovery="none", round_to=1, latency_batch_size=1)
    result = prune_model(model, config, [batch])
    report = result.report
    assert report.sequence_length == lengths.tokens
    assert report.dense.flops == total_flops(anatomy, lengths)
    kept = sum(result.plan.count(block) * flops_per_unit(block, lengths) for block in anatomy.blocks)
    assert report.pruned.flops == kept <= 0.6 * report.dense.flops
    assert kept >= 0.5 * report.dense.flops
    generates = name in ("gpt2", "t5", "whisper", "mixtral")
    assert (0 < report.pruned.generation_flops < report.dense.generation_flops) == generates
    assert ("a token generated after" in report.to_markdown()) == generates


def test_images_as_rows() -> None:
    rows: list[dict[str, Any]] = [{"pixel_values": noise(3, 16, 16), "label": index % 3} for index in range(4)]
    model = TASK_MODELS["vit"].model().float()
    result = prune_model(model, FisherPruningConfig(flops=0.7, recovery="none", latency_batch_size=1), rows)
    assert result.report.pruned.flops <= 0.7 * result.report.dense.flops
