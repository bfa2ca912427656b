"""Models that hold several stacks of layers: each is pruned once, and its sizes are written where they are found again.

Encoder and decoder may share a config (BART) or have unsaved copies of it (T5), towers have configs inside the root's
(CLIP), and parts of a checkpoint can be loaded alone.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    BartModel,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionModel,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    SiglipModel,
    T5EncoderModel,
    VisionEncoderDecoderModel,
    ViTModel,
)

from hf_prune import describe_model
from hf_prune.surgery import PruningPlan, shrink_model, write_metadata
from tests.conformance.plans import difference, prune, run
from tests.family_models import END, START, Head, heads_of, main_head, sample
from tests.small_models import Batch, scale_weights


def head(model_type: str, name: str) -> Head:
    return next(item for item in heads_of(model_type) if item.model_class.__name__ == name)


def pruned(item: Head) -> PreTrainedModel:
    model = item.model()
    prune(model, sample(model))
    return model


def saved(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    model.save_pretrained(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def sizes(model: PreTrainedModel) -> dict[str, int]:
    return {block.key: block.units for block in describe_model(model).blocks}


def inputs(batch: Batch, *names: str) -> Batch:
    return {name: batch[name] for name in names}


class TestEncoderDecoders:
    @pytest.mark.parametrize("model_type", ["bart", "t5", "umt5", "whisper", "marian"])
    def test_metadata_is_written_once_and_names_both_stacks(self, model_type: str, tmp_path: Path) -> None:
        model = pruned(main_head(model_type))
        anatomy = describe_model(model)
        assert len({block.stack for block in anatomy.blocks}) == 2
        assert {block.owner for block in anatomy.blocks} == {""}
        config = saved(model, tmp_path)
        blocks = config["pruning"]["blocks"]
        assert set(blocks) == {block.key for block in anatomy.blocks}
        assert {name.partition(".")[0] for name in blocks} == {"encoder", "decoder"}
        assert json.dumps(config).count('"blocks"') == 1

    def test_decoder_of_a_pruned_checkpoint_loads_alone(self, tmp_path: Path) -> None:
        model = pruned(main_head("bart"))
        saved(model, tmp_path)
        decoder = AutoModelForCausalLM.from_pretrained(tmp_path)
        expected = {key: units for key, units in sizes(model).items() if key.startswith("decoder.")}
        assert sizes(decoder) == expected
        # The text embeddings are stored under the encoder's name, so that a dense checkpoint lacks them here as well.
        decoder.model.decoder.embed_tokens.weight = model.model.decoder.embed_tokens.weight
        batch = sample(model)
        states = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            whole = model.model.decoder(input_ids=batch["decoder_input_ids"], encoder_hidden_states=states)[0]
            alone = decoder.model.decoder(input_ids=batch["decoder_input_ids"], encoder_hidden_states=states)[0]
        assert torch.equal(alone, whole)

    @pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
    def test_encoder_of_a_pruned_checkpoint_loads_alone(self, model_type: str, tmp_path: Path) -> None:
        model = pruned(main_head(model_type))
        saved(model, tmp_path)
        encoder = AutoModelForTextEncoding.from_pretrained(tmp_path)
        expected = {key: units for key, units in sizes(model).items() if key.startswith("encoder.")}
        assert sizes(encoder) == expected
        batch = inputs(sample(model), "input_ids", "attention_mask")
        with torch.no_grad():
            assert torch.equal(encoder(**batch)[0], model.get_encoder()(**batch)[0])

    def test_pruned_encoder_can_be_pruned_and_saved_again(self, tmp_path: Path) -> None:
        saved(pruned(main_head("t5")), tmp_path / "whole")
        encoder = T5EncoderModel.from_pretrained(tmp_path / "whole")
        batch = sample(encoder)
        prune(encoder, batch, seed=1)
        saved(encoder, tmp_path / "encoder")
        loaded = T5EncoderModel.from_pretrained(tmp_path / "encoder")
        assert sizes(loaded) == sizes(encoder)
        assert difference(run(copy.deepcopy(loaded), batch), run(encoder, batch)) == 0

    def test_only_one_stack_is_cut(self, tmp_path: Path) -> None:
        model = head("bart", "BartModel").model()
        anatomy = describe_model(model)
        kept = {block.key: (0, 2) for block in anatomy.blocks if block.key.startswith("decoder.")}
        plan = PruningPlan(kept)
        shrink_model(model, anatomy, plan)
        write_metadata(model, anatomy, plan, {}, {}, {})
        saved(model, tmp_path)
        loaded = BartModel.from_pretrained(tmp_path)
        assert {size for key, size in sizes(loaded).items() if key.startswith("decoder.")} == {2}
        assert {size for key, size in sizes(loaded).items() if key.startswith("encoder.")} == {6, 40}
        assert difference(run(copy.deepcopy(loaded), sample(model)), run(model, sample(model))) == 0


class TestTowers:
    @pytest.mark.parametrize(("model_type", "model_class"), [("clip", CLIPModel), ("siglip", SiglipModel)])
    def test_both_towers_are_pruned_once_each(self, model_type: str, model_class: Any, tmp_path: Path) -> None:
        model = pruned(head(model_type, model_class.__name__))
        anatomy = describe_model(model)
        assert len(anatomy.blocks) == 2 * 2 * 3
        assert {block.owner for block in anatomy.blocks} == {"text_model", "vision_model"}
        config = saved(model, tmp_path)
        assert "pruning" not in config
        for tower in ("text_config", "vision_config"):
            assert len(config[tower]["pruning"]["blocks"]) == 2 * 3
        loaded = AutoModel.from_pretrained(tmp_path)
        assert type(loaded) is model_class
        assert difference(run(copy.deepcopy(loaded), sample(model)), run(model, sample(model))) == 0

    @pytest.mark.parametrize(
        ("part", "model_class"), [("text_model", CLIPTextModel), ("vision_model", CLIPVisionModel)]
    )
    def test_tower_of_a_pruned_checkpoint_loads_alone(self, part: str, model_class: Any, tmp_path: Path) -> None:
        model = pruned(head("clip", "CLIPModel"))
        saved(model, tmp_path)
        tower = model_class.from_pretrained(tmp_path)
        whole = [size for key, size in sizes(model).items() if key.startswith(part)]
        assert list(sizes(tower).values()) == whole
        batch = sample(tower)
        with torch.no_grad():
            assert torch.equal(tower(**batch)[0], getattr(model, part)(**batch)[0])

    def test_classifier_gets_the_pruned_tower(self, tmp_path: Path) -> None:
        model = pruned(head("clip", "CLIPModel"))
        saved(model, tmp_path)
        classifier = CLIPForImageClassification.from_pretrained(tmp_path)
        batch = inputs(sample(model), "pixel_values")
        with torch.no_grad():
            assert torch.equal(classifier.vision_model(**batch)[0], model.vision_model(**batch)[0])


def bert_config(**settings: Any) -> BertConfig:
    config: BertConfig = main_head("bert").config(**settings)
    return config


class TestComposedModels:
    """Models put together from others, which save one config inside the other."""

    def build(self) -> EncoderDecoderModel:
        encoder, decoder = (
            BertModel(bert_config()),
            BertLMHeadModel(bert_config(is_decoder=True, add_cross_attention=True, num_hidden_layers=2)),
        )
        model = EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
        model.config.decoder_start_token_id, model.config.pad_token_id = START, 1
        scale_weights(model)
        return model

    def batch(self) -> Batch:
        batch = sample(main_head("bart").model())
        return inputs(batch, "input_ids", "attention_mask", "decoder_input_ids")

    def test_both_parts_are_pruned_and_read_back(self, tmp_path: Path) -> None:
        model, batch = self.build(), self.batch()
        anatomy = describe_model(model)
        assert len(anatomy.blocks) == 2 * 3 + 3 * 2
        assert {block.owner for block in anatomy.blocks} == {"encoder", "decoder"}
        prune(model, batch)
        config = saved(model, tmp_path)
        assert "pruning" not in config
        assert len(config["encoder"]["pruning"]["blocks"]) == 6
        assert len(config["decoder"]["pruning"]["blocks"]) == 6
        for loader in (EncoderDecoderModel, AutoModelForSeq2SeqLM):
            loaded = loader.from_pretrained(tmp_path)
            assert sizes(loaded) == sizes(model)
            assert difference(run(copy.deepcopy(loaded), batch), run(model, batch)) == 0

    def test_cached_generation_equals_uncached(self) -> None:
        model, batch = self.build(), self.batch()
        prune(model, batch)
        texts = inputs(batch, "input_ids", "attention_mask")
        settings = {"max_new_tokens": 6, "decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": 1}
        cached = model.generate(**texts, **settings, use_cache=True)
        assert torch.equal(cached, model.generate(**texts, **settings, use_cache=False))

    def test_images_to_text(self, tmp_path: Path) -> None:
        encoder = ViTModel(main_head("vit").config())
        settings: dict[str, Any] = {"add_cross_attention": True, "is_decoder": True}
        config: GPT2Config = main_head("gpt2").config(**settings)
        model = VisionEncoderDecoderModel(encoder=encoder, decoder=GPT2LMHeadModel(config)).eval()
        scale_weights(model)
        batch = {
            "pixel_values": sample(encoder)["pixel_values"],
            "decoder_input_ids": self.batch()["decoder_input_ids"],
        }
        assert {block.owner for block in describe_model(model).blocks} == {"encoder", "decoder"}
        prune(model, batch)
        saved(model, tmp_path)
        loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path)
        assert difference(run(copy.deepcopy(loaded), batch), run(model, batch)) == 0
