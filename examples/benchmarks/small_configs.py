"""A small configuration for any model type: one set of sizes under all the names that configurations give them."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FILTERS, LAYERS = 32, 4, 2, 8, 40, 3
VOCABULARY, POSITIONS, IMAGE, PATCH = 64, 64, 32, 8

# What names in configurations mean. A name that a configuration lacks is left out.
_NAMES: tuple[tuple[int, str], ...] = (
    (VOCABULARY, "vocab_size src_vocab_size tgt_vocab_size text_vocab_size vocab_size_per_layer_input"),
    (
        HIDDEN,
        "hidden_size d_model n_embd dim embedding_size decoder_hidden_size encoder_hidden_size projection_dim"
        " projection_size embed_dim codebook_dim out_hidden_size output_dim model_dim fusion_hidden_size shared_dim"
        " projector_hidden_size encoder_hidden_dim decoder_hidden_dim enc_dim attention_dim vision_hidden_size"
        " classifier_proj_size output_proj_dim lstm_dim proj_codevector_dim fc_hidden_dim pred_hidden_size",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"
        " decoder_num_attention_heads encoder_num_heads decoder_num_heads attention_heads"
        " encoder_num_attention_heads nhead pred_num_attention_heads",
    ),
    (
        KV_HEADS,
        "num_key_value_heads n_kv_heads num_kv_heads encoder_num_key_value_heads decoder_num_key_value_heads",
    ),
    (
        HEAD_DIM,
        "head_dim d_kv attention_head_size rotary_dim v_head_dim global_head_dim kv_channels"
        " hidden_size_per_layer_input",
    ),
    (
        FILTERS,
        "intermediate_size d_ff ffn_dim hidden_dim encoder_ffn_dim decoder_ffn_dim n_inner ffn_hidden_size"
        " decoder_intermediate_size encoder_intermediate_size dim_feedforward moe_intermediate_size"
        " shared_expert_intermediate_size",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers num_decoder_layers encoder_layers decoder_layers depth"
        " decoder_num_hidden_layers encoder_num_hidden_layers decoder_num_layers encoder_num_layers"
        " pred_num_hidden_layers",
    ),
    (
        POSITIONS,
        "max_position_embeddings n_positions max_source_positions max_target_positions max_sequence_length"
        " context_length max_text_len",
    ),
    (
        16,
        "q_lora_rank kv_lora_rank num_mel_bins feature_size input_feat_per_channel num_conv_pos_embeddings"
        " conv_channels codebook_size feat_extract_dim decoder_channels prompt_hidden_size"
        " upsample_initial_channel downsample_hidden_size codevector_dim",
    ),
    (5, "conv_depthwise_kernel_size"),
    (
        4,
        "num_experts num_local_experts n_routed_experts moe_num_experts qk_nope_head_dim qk_rope_head_dim"
        " num_conv_pos_embedding_groups num_queries num_query_tokens group_size context_size num_codebooks"
        " mm_tokens_per_image",
    ),
    (2, "num_frames frames_per_clip num_experts_per_tok type_vocab_size"),
    (1, "n_group topk_group n_shared_experts first_k_dense_replace"),
    (IMAGE, "image_size img_size input_size crop_size"),
    (PATCH, "patch_size"),
)
SIZES = {name: value for value, names in _NAMES for name in names.split()}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
# What has to fit together in ways that no other configuration knows.
_PECULIAR: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "zaya": {"num_experts_per_tok": 1},
    "esmc": {"num_key_value_heads": HEADS},
}
# Text models whose rotary embedding has sections, which their configurations do not show.
_SECTIONED = ("qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text", "glm4v_moe_text", "glm_ocr_text", "glm_image_text")
# Lists with a size for each of a feature extractor's convolutions.
_SIZES_OF_CONVOLUTIONS = ("conv_dim", "tdnn_dim")


def small_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """A configuration of about three layers of width 32, its parts shrunk the same way.

    Args:
        model_type: any of transformers' model types.
        changes: settings that take precedence.

    Raises:
        Exception: the configuration does not accept these sizes; it says why in its own words.
    """
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**{**_small_settings(config_class), **_PECULIAR.get(model_type, {}), **changes})


def _small_settings(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    default = _default(config_class)
    known = _setting_names(config_class)
    settings: dict[str, Any] = {name: value for name, value in (SIZES | _TOKENS).items() if name in known}
    if _value(default, "depths") is not None:  # the number of stages, whose sizes come in lists
        settings = {name: value for name, value in settings.items() if value != LAYERS}
    settings |= _small_lists(default, settings) | _small_rope(default, settings) | _small_token_ids(default)
    for name in getattr(config_class, "sub_configs", {}):
        part = _value(default, name)
        if isinstance(part, PreTrainedConfig):
            settings[name] = {**_small_settings(type(part)), "model_type": part.model_type}
    return settings


def _small_lists(default: Any, settings: dict[str, Any]) -> dict[str, list[int]]:
    """Sizes of which there is one per layer, stage, axis or convolution."""
    layers = None if _value(default, "depths") else _value(default, "num_hidden_layers")
    lists = {}
    for name, size in (settings | dict.fromkeys(_SIZES_OF_CONVOLUTIONS, 16)).items():
        value = _value(default, name)
        if isinstance(value, (list, tuple)):
            lists[name] = [size] * (LAYERS if len(value) == layers else len(value))
    return lists


def _value(config: Any, name: str) -> Any:
    """A setting, or None: reading one that differs between layers raises an error of its own kind."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return None


def _default(config_class: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    try:
        return config_class()
    except Exception:  # some configurations cannot do without settings
        return None


def _setting_names(config_class: type[PreTrainedConfig]) -> set[str]:
    names = set(inspect.signature(config_class.__init__).parameters)
    return names | set(config_class.attribute_map) | set(getattr(config_class, "__dataclass_fields__", {}))


def _small_rope(default: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings whose sections add up to half of the small head."""
    rope = _value(default, "rope_parameters") or {"rope_type": "default", "rope_theta": 10000.0}
    if "mrope_section" not in rope and getattr(default, "model_type", None) not in _SECTIONED:
        return {}
    half = settings.get("head_dim", HIDDEN // settings.get("num_attention_heads", HEADS)) // 2
    return {"rope_parameters": {**copy.deepcopy(rope), "mrope_section": [half - 2, 1, 1]}}


def _small_token_ids(default: Any) -> dict[str, int]:
    """Ids of special tokens that lie in the small vocabulary, each its own."""
    names = [name for name in vars(default or object) if name.endswith(("_token_id", "_token_index"))]
    large = [name for name in sorted(names) if isinstance(_value(default, name), int) and name not in _TOKENS]
    return {name: 3 + index for index, name in enumerate(large)}
