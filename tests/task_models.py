"""Small random models whose losses are computed in different ways, each with a batch of examples that differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.small_models import Batch, scale_weights

VOCABULARY, LENGTH, EXAMPLES = 41, 9, 3
IGNORED = -100

_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
_BART = {
    **_TOKENS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "decoder_start_token_id": 2,
}
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}
_WAV2VEC2 = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_stride": (4, 2),
    "conv_kernel": (5, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "vocab_size": 12,
    "pad_token_id": 0,
    "apply_spec_augment": False,
    "layerdrop": 0.0,
    "classifier_proj_size": 16,
}
_CLIP_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


def integers(high: int, *shape: int, low: int = 0, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _mask(lengths: tuple[int, ...], left: bool = False) -> torch.Tensor:
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return mask.flip(1) if left else mask


def text(left: bool = False, prompt: int = 0) -> Batch:
    """Texts of different lengths to be continued; of each the first `prompt` positions are not predicted."""
    mask = _mask((LENGTH, 5, 7), left)
    ids = integers(VOCABULARY, EXAMPLES, LENGTH, low=3) * mask
    labels = ids.where(mask.bool(), torch.tensor(IGNORED))
    labels[:, :prompt] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def packed() -> Batch:
    """Rows in which several short texts follow each other, told apart by their positions."""
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    ids = integers(VOCABULARY, EXAMPLES, LENGTH, low=3)
    return {"input_ids": ids, "position_ids": positions, "labels": ids.where(positions > 0, torch.tensor(IGNORED))}


def translation() -> Batch:
    """The sources have as many valid tokens in all as the targets have positions, so numbers do not tell them apart."""
    mask = _mask((8, 3, 7))
    labels = integers(VOCABULARY, EXAMPLES, 6, low=3, seed=2).where(_mask((6, 2, 5)).bool(), torch.tensor(IGNORED))
    return {"input_ids": integers(VOCABULARY, EXAMPLES, 8, low=3) * mask, "attention_mask": mask, "labels": labels}


def images() -> Batch:
    return {"pixel_values": noise(EXAMPLES, 3, 16, 16), "labels": torch.tensor([2, 0, 1])}


def sounds(labels: torch.Tensor) -> Batch:
    mask = _mask((200, 120, 160))
    return {"input_values": noise(EXAMPLES, 200) * mask, "attention_mask": mask, "labels": labels}


def speech() -> Batch:
    """Sounds with what is said in them, padded."""
    return sounds(integers(12, EXAMPLES, 6, low=1).where(_mask((6, 2, 4)).bool(), torch.tensor(IGNORED)))


def spectrograms(bins: int, frames: int, channels_first: bool) -> Batch:
    features = noise(EXAMPLES, bins, frames) if channels_first else noise(EXAMPLES, frames, bins)
    return {"input_features": features, "labels": translation()["labels"]}


@dataclass(frozen=True)
class TaskModel:
    """A model class with a small config, and the batch that goes with it."""

    name: str
    model_class: str
    settings: dict[str, Any]
    batch: Callable[[], Batch]

    def model(self, **changes: Any) -> PreTrainedModel:
        """In double precision and evaluation mode, with weights that matter."""
        model_class = getattr(transformers, self.model_class)
        model = model_class(model_class.config_class(**self.settings | changes)).eval().double()
        scale_weights(model)
        return model

    def example(self) -> Batch:
        """The batch in double precision."""
        return {key: value.double() if value.is_floating_point() else value for key, value in self.batch().items()}

    def __str__(self) -> str:
        return self.name


_GPT2 = {**_TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 24, "n_positions": 32}
_T5 = {**_TOKENS, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_OPT = {
    **_TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "ffn_dim": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "word_embed_proj_dim": 32,
}
_ALBERT = {
    "vocab_size": VOCABULARY,
    "embedding_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
# The default multiplication of experts knows no double precision.
_MIXTRAL = {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "eager"}
_WHISPER = {**_BART, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16}
_SPEECH_TO_TEXT = {
    **_BART,
    "input_feat_per_channel": 8,
    "conv_channels": 16,
    "max_source_positions": 64,
    "max_target_positions": 16,
}

TASK_MODELS = {
    item.name: item
    for item in (
        TaskModel("gpt2", "GPT2LMHeadModel", _GPT2, text),
        TaskModel("gpt2, left padding", "GPT2LMHeadModel", _GPT2, lambda: text(left=True)),
        TaskModel("llama", "LlamaForCausalLM", _LLAMA, lambda: text(prompt=3)),
        TaskModel("llama, packed", "LlamaForCausalLM", _LLAMA, packed),
        TaskModel("opt", "OPTForCausalLM", _OPT, text),
        TaskModel("t5", "T5ForConditionalGeneration", _T5, translation),
        TaskModel("bart", "BartForConditionalGeneration", _BART, translation),
        TaskModel(
            "whisper", "WhisperForConditionalGeneration", _WHISPER, lambda: spectrograms(8, 20, channels_first=True)
        ),
        TaskModel(
            "speech_to_text",
            "Speech2TextForConditionalGeneration",
            _SPEECH_TO_TEXT,
            lambda: spectrograms(8, 24, channels_first=False),
        ),
        TaskModel("vit", "ViTForImageClassification", {**_VIT, "num_labels": 3}, images),
        TaskModel("clip", "CLIPForImageClassification", {"vision_config": _VIT, "num_labels": 3}, images),
        TaskModel("wav2vec2, ctc sum", "Wav2Vec2ForCTC", {**_WAV2VEC2, "ctc_loss_reduction": "sum"}, speech),
        TaskModel("wav2vec2, ctc mean", "Wav2Vec2ForCTC", {**_WAV2VEC2, "ctc_loss_reduction": "mean"}, speech),
        TaskModel("hubert, ctc mean", "HubertForCTC", {**_WAV2VEC2, "ctc_loss_reduction": "mean"}, speech),
        TaskModel(
            "wav2vec2, classification",
            "Wav2Vec2ForSequenceClassification",
            {**_WAV2VEC2, "num_labels": 3},
            lambda: sounds(torch.tensor([2, 0, 1])),
        ),
        TaskModel("albert", "AlbertForMaskedLM", _ALBERT, text),
        TaskModel("mixtral", "MixtralForCausalLM", _MIXTRAL, text),
    )
}
CONTRASTIVE = {
    item.name: item
    for item in (
        TaskModel(
            name,
            model_class,
            {"text_config": _CLIP_TEXT, "vision_config": _VIT, "projection_dim": 16},
            lambda: {
                "input_ids": integers(VOCABULARY, EXAMPLES, 8, low=3).index_fill(1, torch.tensor([7]), 2),
                "pixel_values": noise(EXAMPLES, 3, 16, 16),
            },
        )
        for name, model_class in (("clip", "CLIPModel"), ("siglip", "SiglipModel"))
    )
}
