"""The family table: which model types have which sublayers."""

from __future__ import annotations

from . import sublayers as s
from .layouts import AttentionLayout, Family, Layout

FAMILIES: tuple[Family, ...] = (
    Family(
        (
            *("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "layoutlm", "data2vec-text"),
            *("rembert", "roformer", "splinter"),
        ),
        (s.BERT, s.BERT_CROSS, s.BERT_FFN),
    ),
    Family(("mobilebert",), (s.BERT, *s.MOBILEBERT_FFNS, s.BERT_FFN)),
    # Half of ConvBERT's heads are convolutions over all of them: only its filters can be cut.
    Family(("convbert",), (s.BERT_FFN,)),
    Family(("xlm-roberta-xl",), (s.BERT_PRE_NORM, s.BERT_CROSS_PRE_NORM, s.BERT_FFN_PRE_NORM)),
    Family(("distilbert",), (s.DISTILBERT, s.DISTILBERT_FFN)),
    Family(("mpnet",), (s.MPNET, s.BERT_FFN)),
    Family(("deberta",), (s.DEBERTA, s.BERT_FFN)),
    Family(("deberta-v2",), (s.DEBERTA_V2, s.BERT_FFN)),
    Family(("albert",), (s.ALBERT, s.ALBERT_FFN)),
    Family(("modernbert",), (s.MODERNBERT, s.MODERNBERT_MLP)),
    Family(
        (
            *("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2"),
            *("granite", "stablelm", "cohere", "smollm3", "exaone4"),
        ),
        (s.LLAMA, s.GATED_MLP),
    ),
    Family(
        ("mixtral", "qwen3_moe", "olmoe", "qwen2_moe"),
        (s.LLAMA, s.GATED_MLP, s.SHARED_EXPERT, s.EXPERTS),
    ),
    Family(
        ("dots1", "ernie4_5_moe", "glm4_moe"),
        (s.LLAMA, s.GATED_MLP, s.SHARED_EXPERTS, s.EXPERTS),
    ),
    Family(("gpt_oss",), (s.GPT_OSS, s.ROUTED_EXPERTS)),
    Family(("granitemoe",), (s.LLAMA, s.SPARSE_EXPERTS)),
    Family(("nemotron",), (s.LLAMA, s.UP_DOWN_MLP)),
    Family(("starcoder2",), (s.LLAMA, s.GPT2_MLP)),
    Family(("glm",), (s.LLAMA, s.FUSED_GATED_MLP)),
    Family(("phi",), (s.PHI, s.FC_MLP)),
    Family(("phi3",), (s.PHI3, s.FUSED_GATED_MLP)),
    Family(("persimmon",), (s.PERSIMMON, s.GPT_NEOX_MLP)),
    Family(("gpt2",), (s.GPT2, s.GPT2_CROSS, s.GPT2_MLP)),
    Family(("gpt_neo",), (s.GPT_NEO, s.GPT2_MLP)),
    Family(("gpt_neox",), (s.GPT_NEOX, s.GPT_NEOX_MLP)),
    Family(("gptj",), (s.GPTJ, s.GPTJ_MLP)),
    Family(("codegen",), (s.CODEGEN, s.GPTJ_MLP)),
    Family(
        (
            *("bart", "mbart", "pegasus", "marian", "m2m_100", "blenderbot", "whisper", "speech_to_text", "opt"),
            *("xglm", "biogpt"),
        ),
        (s.BART, s.BART_CROSS, s.BART_FFN),
    ),
    Family(("bloom",), (s.BLOOM, s.GPT_NEOX_MLP)),
    Family(("falcon",), (s.FALCON, s.GPT_NEOX_MLP)),
    Family(("mpt",), (s.MPT, s.MPT_FFN)),
    Family(
        ("t5", "mt5"),
        (s.T5, s.T5_CROSS, *s.T5_FFNS),
    ),
    Family(("umt5",), (s.UMT5, s.UMT5_CROSS, *s.T5_FFNS)),
    Family(("beit",), (s.BEIT, s.FC_MLP)),
    Family(("vit", "deit", "vit_mae", "dinov2"), (s.VIT, s.FC_MLP, s.GATED_MLP)),
    Family(
        ("clip", "clip_text_model", "clip_vision_model", "siglip", "siglip_text_model", "siglip_vision_model"),
        (s.CLIP, s.FC_MLP),
    ),
    Family(("wav2vec2", "hubert", "data2vec-audio"), (s.WAV2VEC2, s.WAV2VEC2_FFN)),
)


def family_of(model_type: str | None) -> Family | None:
    """The table's entry for a `config.model_type`, or None."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def supported_model_types() -> tuple[str, ...]:
    """Every `config.model_type` in the table, in alphabetical order."""
    return tuple(sorted(model_type for family in FAMILIES for model_type in family.model_types))


def known_sublayers() -> tuple[Layout, ...]:
    """Every layout in the table, once; attention first, as layers run it before the rest."""
    found: list[Layout] = []
    for family in FAMILIES:
        found += [layout for layout in family.sublayers if layout not in found]
    return tuple(sorted(found, key=lambda layout: not isinstance(layout, AttentionLayout)))
