"""Small models and the layers that tests remove from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy.example_inputs import example_batch
from hf_prune.surgery import PruningPlan, apply_plan, write_metadata
from tests.small_models import scale_weights

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
}
GROUPS = {"num_key_value_heads": 2, "head_dim": 8}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GPT2 = {"vocab_size": 61, "n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 48, **IDS}
_GPT_NEO = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_heads": 4,
    "num_layers": 4,
    "intermediate_size": 40,
    "attention_types": [[["global", "local"], 2]],
    "max_position_embeddings": 48,
    "window_size": 4,
    **IDS,
}
_GEMMA3 = {
    **SIZES,
    **GROUPS,
    **IDS,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
}
_T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_heads": 4, "num_layers": 4, "num_decoder_layers": 3}
_BART = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "max_position_embeddings": 48,
    **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in [("attention_heads", 4)]},
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
}
VISION = {**SIZES, "image_size": 16, "patch_size": 8}


@dataclass(frozen=True)
class Example:
    """A model and layers to remove from it, with the config entries that say so afterwards."""

    name: str
    settings: dict[str, Any]
    removed: tuple[str, ...]
    entries: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    def model(self, **changes: Any) -> PreTrainedModel:
        model_class = getattr(transformers, self.name)
        model = model_class(model_class.config_class(**{**self.settings, **changes})).eval()
        scale_weights(model)
        return model


LLAMA = Example("LlamaForCausalLM", {**SIZES, **GROUPS, **IDS}, ("layers.0", "layers.2"), {"num_hidden_layers": 2})
GEMMA3 = Example(
    "Gemma3ForCausalLM",
    _GEMMA3,
    ("layers.0", "layers.3"),
    {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
)
QWEN2 = Example(
    "Qwen2ForCausalLM",
    {**SIZES, "num_key_value_heads": 2, **IDS},
    ("layers.1",),
    {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
)
GPT2 = Example("GPT2LMHeadModel", _GPT2, ("h.0", "h.2"), {"n_layer": 2, "num_hidden_layers": 2})
GPT_NEO = Example(
    "GPTNeoForCausalLM", _GPT_NEO, ("h.1",), {"num_layers": 3, "attention_layers": ["global", "global", "local"]}
)
BERT = Example("BertForSequenceClassification", SIZES, ("encoder.layer.0", "encoder.layer.3"), {"num_hidden_layers": 2})
T5 = Example(
    "T5ForConditionalGeneration",
    _T5,
    ("encoder.block.1", "encoder.block.2", "decoder.block.2"),
    {"num_layers": 2, "num_decoder_layers": 2},
)
BART = Example(
    "BartForConditionalGeneration",
    _BART,
    ("decoder.layers.0", "decoder.layers.2"),
    {"encoder_layers": 4, "decoder_layers": 2},
)
VIT = Example("ViTForImageClassification", VISION, ("layers.0",), {"num_hidden_layers": 3})
DINOV2 = Example(
    "Dinov2ForImageClassification",
    {**VISION, "mlp_ratio": 2},
    ("encoder.layer.3",),
    {"num_hidden_layers": 3, "out_features": ["stage3"]},
)
EXAMPLES = (LLAMA, GEMMA3, QWEN2, GPT2, GPT_NEO, BERT, T5, BART, VIT, DINOV2)
DECODERS = (LLAMA, GEMMA3, QWEN2, GPT2, GPT_NEO)


def remove(model: PreTrainedModel, removed: tuple[str, ...], kept: dict[str, tuple[int, ...]] | None = None) -> None:
    """Removes layers, checked on a batch, and writes the metadata."""
    anatomy = describe_model(model)
    plan = PruningPlan(kept or {}, removed)
    apply_plan(model, anatomy, plan, batch=example_batch(model))
    write_metadata(model, anatomy, plan, {"strategy": "by hand"}, {}, {})
