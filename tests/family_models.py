"""One small random model for every model type in the family table and every task head that transformers has for it.

Heads are looked up in transformers' auto classes, so that a new entry in the table brings its tests with it; what a
type needs beyond the common sizes is listed here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_prune.anatomy import supported_model_types
from tests.small_models import Batch, scale_weights

HIDDEN, HEADS, GROUPS, FILTERS, LAYERS, VOCABULARY, POSITIONS = 48, 6, 3, 40, 3, 61, 48
HEAD_SIZE = HIDDEN // HEADS
FRAMES, BINS, SAMPLES = 16, 8, 400
PADDING, START, END = 1, 2, 3
LENGTHS = (9, 5, 7)

# Sizes under all the names that configs have for them; a config gets those that it knows.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size"), HIDDEN),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "ffn_dim", "d_ff", "n_inner"), FILTERS),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "decoder_intermediate_size"), FILTERS),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), POSITIONS),
    **dict.fromkeys(("head_dim", "d_kv"), HEAD_SIZE),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    "num_key_value_heads": GROUPS,
    "type_vocab_size": 2,
    "pad_token_id": PADDING,
    "bos_token_id": START,
    "eos_token_id": END,
    "decoder_start_token_id": START,
    # images
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
    "encoder_stride": 8,
    "decoder_hidden_size": HIDDEN,
    "decoder_num_attention_heads": HEADS,
    "decoder_num_hidden_layers": 2,
    # sound
    "conv_dim": (8, 8),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_conv_pos_embedding_groups": 2,
    "num_conv_pos_embeddings": 4,
    "conv_pos_kernel_size": 3,
    "num_feat_extract_layers": 2,
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
    "num_codevectors_per_group": 4,
    "apply_spec_augment": False,
    "tdnn_dim": (8, 8),
    "tdnn_kernel": (3, 1),
    "tdnn_dilation": (1, 1),
    "xvector_output_dim": 8,
    "classifier_proj_size": 8,
    "num_mel_bins": BINS,
    **dict.fromkeys(("layerdrop", "encoder_layerdrop", "decoder_layerdrop"), 0.0),
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1),
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "moe_layer_start_index": 1,
}
_TOWERS = {"text_config": _SIZES, "vision_config": _SIZES, "projection_dim": 16}
_POSITIONS = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

# What a model type needs beyond the common sizes.
_OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "beit": {"use_relative_position_bias": True, "out_indices": [0, 1, 2, 3]},
    "clip": _TOWERS,
    "codegen": {"n_head": 8, "n_embd": 64, "rotary_dim": 4},
    "convbert": {"num_attention_heads": 4, "head_ratio": 2, "conv_kernel_size": 3},
    "deberta": _POSITIONS,
    "deberta-v2": _POSITIONS,
    "exaone4": _SLIDING,
    "falcon": {"ffn_hidden_size": FILTERS, "new_decoder_architecture": True, "num_kv_heads": GROUPS},
    "gemma2": _SLIDING | {"query_pre_attn_scalar": 8},
    "gemma3_text": _SLIDING | {"query_pre_attn_scalar": 8},
    "gpt_neo": {"num_layers": 3, "attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "gptj": {"rotary_dim": 4},
    "mobilebert": {"classifier_activation": False, "intra_bottleneck_size": 24, "num_feedforward_networks": 2},
    "siglip": _TOWERS,
    "splinter": {"question_token_id": 7},
    "speech_to_text": {"input_feat_per_channel": BINS, "conv_channels": 16, "max_source_positions": FRAMES},
    "whisper": {"max_source_positions": FRAMES // 2},
    "xglm": {"num_layers": 3, "attention_heads": HEADS},
}
_NOT_HEADS = {"JevForDecision"}  # a decision model on top of a language model, not a task head


@dataclass(frozen=True)
class Head:
    """A model type with one of its task heads."""

    model_type: str
    model_class: type[PreTrainedModel]
    auto_class: Any = field(hash=False)
    name: str = ""
    changes: dict[str, Any] = field(default_factory=dict, hash=False)

    def config(self, attention: str | None = None, **changes: Any) -> PreTrainedConfig:
        config_class = CONFIG_MAPPING[self.model_type]
        names = inspect.signature(config_class.__init__).parameters
        sizes = {name: value for name, value in _SIZES.items() if name in names}
        settings = sizes | _OWN.get(self.model_type, {}) | self.changes | changes
        if self.model_class.__name__.endswith(("ForCausalLM", "LMHeadModel")) and "is_decoder" in names:
            settings.setdefault("is_decoder", True)
        config = config_class(**settings)
        if attention is not None:
            config._attn_implementation = attention
        return config

    def model(self, attention: str | None = None, seed: int = 0, **changes: Any) -> PreTrainedModel:
        """In evaluation mode, with weights that matter."""
        model = self.model_class(self.config(attention, **changes)).eval()
        scale_weights(model, seed)
        return model

    def __str__(self) -> str:
        return f"{self.name or self.model_type}-{self.model_class.__name__}"


def _auto_classes() -> dict[str, Any]:
    found = {name: item for name, item in vars(modeling_auto).items() if name.startswith("AutoModel")}
    return {name: item for name, item in found.items() if getattr(item, "_model_mapping", None) is not None}


@cache
def heads_of(model_type: str) -> tuple[Head, ...]:
    """Every class that transformers' auto classes know for a model type, the bare model first."""
    config_class = CONFIG_MAPPING[model_type]
    classes: dict[type[PreTrainedModel], Any] = {}
    for _, auto_class in sorted(_auto_classes().items()):
        if config_class in auto_class._model_mapping:
            found = auto_class._model_mapping[config_class]
            for model_class in found if isinstance(found, (tuple, list)) else (found,):
                classes.setdefault(model_class, auto_class)
    if model_type == "siglip_text_model":
        classes[transformers.SiglipTextModel] = transformers.SiglipTextModel
    return tuple(Head(model_type, *item) for item in classes.items() if item[0].__name__ not in _NOT_HEADS)


_GENERATION = ("ForConditionalGeneration", "MTModel", "ForCausalLM", "LMHeadModel")
_OTHER = ("ForCTC", "ForSequenceClassification", "ForImageClassification", "ForPreTraining")


@cache
def main_head(model_type: str) -> Head:
    """The head that a model type is best known for: generation (BERT-likes aside), speech, classification."""
    heads = heads_of(model_type)
    masked = any(head.model_class.__name__.endswith("ForMaskedLM") for head in heads)
    endings = _OTHER if masked else (*_GENERATION, *_OTHER)
    found = (head for ending in endings for head in heads if head.model_class.__name__.endswith(ending))
    return next(found, heads[-1])


# Ways to lay out a layer that a model type's config can ask for, beside the common one: name → (model type, settings).
_VARIED: dict[str, tuple[str, dict[str, Any]]] = {
    "albert, groups of layers": ("albert", {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}),
    "beit, shared position bias": (
        "beit",
        {"use_relative_position_bias": False, "use_shared_relative_position_bias": True},
    ),
    "bloom, norm in the residual": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "cohere, norms per head": ("cohere", {"use_qk_norm": True}),
    "deberta-v2, one key for positions": ("deberta-v2", {"share_att_key": True, "norm_rel_ebd": "layer_norm"}),
    "deberta-v2, convolution": ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta, no positions": ("deberta", {"relative_attention": False, "position_biased_input": True}),
    "dinov2, gated": ("dinov2", {"use_swiglu_ffn": True}),
    "falcon, one key": ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    "falcon, a key per head": (
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": HEADS},
    ),
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "gpt2, cross-attention": ("gpt2", {"add_cross_attention": True}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_oss, as many heads as values": (
        "gpt_oss",
        {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8},
    ),
    "cohere, as many heads as values": (
        "cohere",
        {"use_qk_norm": True, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64},
    ),
    "llama, one key": ("llama", {"num_key_value_heads": 1}),
    "llama, a key per head": ("llama", {"num_key_value_heads": HEADS}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mobilebert, one feed-forward": ("mobilebert", {"num_feedforward_networks": 1}),
    "mpt, no ALiBi": ("mpt", {"attn_config": {"alibi": False}}),
    "opt, norm after the sum": ("opt", {"do_layer_norm_before": False}),
    "persimmon, no norms": ("persimmon", {"qk_layernorm": False}),
    "phi, norms": ("phi", {"qk_layernorm": True}),
    "qwen3_moe, dense layer": ("qwen3_moe", {"mlp_only_layers": [1]}),
    "roformer, rotated values": ("roformer", {"rotary_value": True}),
    "stablelm, norms per head": ("stablelm", {"qk_layernorm": True}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
    "t5, gated": ("t5", {"feed_forward_proj": "gated-gelu"}),
    "wav2vec2, norm before": ("wav2vec2", {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
}


def _variants() -> Iterator[Head]:
    for name, (model_type, changes) in _VARIED.items():
        yield replace(main_head(model_type), name=name, changes=changes)


def generates(head: Head) -> bool:
    """Whether a head writes text token by token."""
    return head.model_class.__name__.endswith(_GENERATION)


VARIANTS = tuple(_variants())


def sample(model: PreTrainedModel, seed: int = 0) -> Batch:
    """Padded examples for a model, without labels."""
    generator = torch.Generator().manual_seed(100 + seed)
    accepted = inspect.signature(model.forward).parameters
    name = model.main_input_name
    batch = {name: _main_input(model, name, generator)}
    if "pixel_values" in accepted and "input_ids" in accepted:
        batch["pixel_values"] = _main_input(model, "pixel_values", generator)
    if "input_ids" in batch:
        batch["input_ids"][:, 2] = getattr(model.config, "question_token_id", 9)
        batch["attention_mask"] = (batch["input_ids"] != PADDING).long()
    if model.config.is_encoder_decoder and "decoder_input_ids" in accepted:
        batch["decoder_input_ids"] = _tokens(generator)
    if _reads_an_encoder(model, accepted):
        batch["encoder_hidden_states"] = torch.randn(len(LENGTHS), 5, HIDDEN, generator=generator)
    if "noise" in accepted:  # which patches ViT-MAE masks
        batch["noise"] = torch.rand(len(LENGTHS), 4, generator=generator)
    if type(model).__name__.endswith("ForMultipleChoice"):
        batch = {name: value[:, None].repeat(1, 2, 1) for name, value in batch.items()}
        batch["input_ids"][:, 1, 1] = VOCABULARY - 1
    return batch


def _main_input(model: PreTrainedModel, name: str, generator: torch.Generator) -> torch.Tensor:
    if name == "input_ids":
        return _tokens(generator)
    whisper = model.config.model_type == "whisper"
    shape = {
        "pixel_values": (3, 16, 16),
        "input_values": (SAMPLES,),
        "input_features": (BINS, FRAMES) if whisper else (FRAMES, BINS),
    }[name]
    return torch.randn(len(LENGTHS), *shape, generator=generator)


def _tokens(generator: torch.Generator) -> torch.Tensor:
    """Texts that end with the end-of-text token, padded on the right."""
    ids = torch.randint(5, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    places, ends = torch.arange(max(LENGTHS))[None], torch.tensor(LENGTHS)[:, None]
    return ids.where(places != ends - 1, torch.tensor(END)).where(places < ends, torch.tensor(PADDING))


def _reads_an_encoder(model: PreTrainedModel, accepted: Any) -> bool:
    crossing = any(name.endswith(("encoder_attn", "crossattention")) for name, _ in model.named_modules())
    return crossing and "decoder_input_ids" not in accepted and "encoder_hidden_states" in accepted


def labels(model: PreTrainedModel, batch: Batch) -> Batch:
    """What the model's loss is taken from, for the heads that have an ordinary one; otherwise nothing."""
    name, rows = type(model).__name__, len(LENGTHS)
    if name.endswith(_GENERATION) and "ForConditionalGeneration" not in name and "MTModel" not in name:
        return {"labels": batch["input_ids"].where(batch["input_ids"] != PADDING, torch.tensor(-100))}
    if name.endswith(_GENERATION):
        ids = batch["decoder_input_ids"]
        return {"labels": ids.where(ids != PADDING, torch.tensor(-100))}
    if name.endswith("ForCTC"):
        return {"labels": torch.randint(5, VOCABULARY, (rows, 3), generator=torch.Generator().manual_seed(0))}
    if name.endswith(("ForSequenceClassification", "ForImageClassification")):
        return {"labels": torch.arange(rows) % 2}
    return {}


# Every model type in the table with every head that it has.
EVERY_HEAD = [head for model_type in supported_model_types() for head in heads_of(model_type)]


def head_named(name: str) -> Head:
    """By its class."""
    return next(head for head in EVERY_HEAD if head.model_class.__name__ == name)
