"""Random batches that models of all kinds take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMultipleChoice,
    CLIPConfig,
    DecisionTransformerConfig,
    LlavaConfig,
    PreTrainedModel,
    Qwen2VLConfig,
    Siglip2VisionConfig,
    T5Config,
    VideoMAEConfig,
    ViTConfig,
    Wav2Vec2Config,
    WhisperConfig,
)
from transformers import BertConfig as TextConfig

from hf_prune import UnsupportedModelError
from hf_prune.anatomy.example_inputs import example_batch

_WIDTH: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 24,
}
_TEXT: dict[str, Any] = {**_WIDTH, "vocab_size": 61, "max_position_embeddings": 64}
_IMAGE: dict[str, Any] = {**_WIDTH, "image_size": 16, "patch_size": 8}
_ENCODER_DECODER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 61,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
_SMALL_CLIP = CLIPConfig(text_config=_TEXT | {"eos_token_id": 2}, vision_config=_IMAGE, projection_dim=32)
_LLAVA = LlavaConfig(
    text_config={"model_type": "llama", **_TEXT, "num_key_value_heads": 2},
    vision_config={"model_type": "clip_vision_model", **_IMAGE},
    image_token_id=9,
)
_QWEN_VL = Qwen2VLConfig(
    text_config={**_TEXT, "num_key_value_heads": 2, "rope_parameters": _QWEN_ROPE},
    vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
    image_token_id=9,
    video_token_id=8,
    vision_start_token_id=7,
    vision_end_token_id=6,
)

# Config → the arguments that the batch must have, with their shapes for two rows and twelve tokens.
SHAPES: list[tuple[Any, dict[str, tuple[int, ...]]]] = [
    (TextConfig(**_TEXT), {"input_ids": (2, 12), "attention_mask": (2, 12)}),
    (
        T5Config(vocab_size=61, d_model=32, d_kv=8, num_heads=4, d_ff=24, num_layers=1),
        {"input_ids": (2, 12), "decoder_input_ids": (2, 12)},
    ),
    (ViTConfig(**_IMAGE), {"pixel_values": (2, 3, 16, 16)}),
    (VideoMAEConfig(**_IMAGE, num_frames=2), {"pixel_values": (2, 2, 3, 16, 16)}),
    (
        Siglip2VisionConfig(**_WIDTH, num_patches=196, patch_size=16),
        {"pixel_values": (2, 196, 768), "pixel_attention_mask": (2, 196), "spatial_shapes": (2, 2)},
    ),
    (Wav2Vec2Config(**_WIDTH, conv_dim=[16] * 7, num_conv_pos_embedding_groups=4), {"input_values": (2, 4000)}),
    (WhisperConfig(**_ENCODER_DECODER), {"input_features": (2, 8, 20), "decoder_input_ids": (2, 12)}),
    (_SMALL_CLIP, {"input_ids": (2, 12), "pixel_values": (2, 3, 16, 16)}),
    (_LLAVA, {"input_ids": (2, 16), "pixel_values": (2, 3, 16, 16)}),
    (
        DecisionTransformerConfig(hidden_size=32, n_head=4, n_layer=1, state_dim=5, act_dim=3),
        {"states": (2, 12, 5), "actions": (2, 12, 3), "returns_to_go": (2, 12, 1), "timesteps": (2, 12)},
    ),
]


def build(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModel.from_config(config)


@pytest.mark.parametrize(("config", "shapes"), SHAPES, ids=lambda value: getattr(value, "model_type", ""))
def test_batches_have_what_the_model_reads(config: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    model = build(config).train()
    random_state = torch.get_rng_state()
    batch = example_batch(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    found = {name: tuple(value.shape) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    assert {name: found.get(name) for name in shapes} == shapes
    model.eval()
    with torch.no_grad():
        first, second = model(**batch), model(**example_batch(model))
    assert torch.equal(first[0], second[0])  # the same batch each time


@pytest.mark.parametrize("config", [_LLAVA, _QWEN_VL], ids=["llava", "qwen2_vl"])
def test_images_in_texts_reach_the_output(config: Any) -> None:
    model = build(config).eval()
    batch = example_batch(model)
    assert batch["input_ids"].eq(9).sum() > 0
    changed = {**batch, "pixel_values": -batch["pixel_values"]}
    with torch.no_grad():
        assert not torch.equal(model(**batch)[0], model(**changed)[0])


def test_rows_and_length_are_as_asked_for() -> None:
    batch = example_batch(build(TextConfig(**_TEXT)), rows=3, length=7)
    assert batch["input_ids"].shape == (3, 7)
    assert batch["use_cache"] is False


def test_multiple_choice_gets_choices() -> None:
    batch = example_batch(AutoModelForMultipleChoice.from_config(TextConfig(**_TEXT)))
    assert batch["input_ids"].shape == (2, 1, 12)


def test_tokens_are_none_that_embeddings_treat_specially() -> None:
    ids = example_batch(build(TextConfig(**_TEXT, eos_token_id=2)))["input_ids"]
    assert ids[:, :-1].min() >= 10
    assert ids.max() < 61


def test_an_input_of_an_unknown_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(ViTConfig(**_IMAGE))

    def forward(star_map: torch.Tensor) -> torch.Tensor:
        return star_map

    model.main_input_name = "star_map"
    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(UnsupportedModelError, match=r"ViTModel, which reads 'star_map'.*star_map"):
        example_batch(model)
