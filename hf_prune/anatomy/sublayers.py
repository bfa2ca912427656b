"""The sublayers that the families are put together from, by the names that modelling code gives their projections."""

from __future__ import annotations

from typing import Any

from .layouts import AttentionLayout, ExpertsLayout, FeedForwardLayout, Makes, Tap


def separate(core: str, query: str, key: str, value: str, output: str, **settings: Any) -> AttentionLayout:
    """Attention with a projection each for queries, keys and values, all inside `core`."""
    inputs: dict[str, Makes] = {f"{core}.{query}": "query", f"{core}.{key}": "key", f"{core}.{value}": "value"}
    return AttentionLayout(settings.pop("name", core), core, inputs, f"{core}.{output}", **settings)


def fused(
    core: str, projection: str, output: str, makes: Makes = "query+key+value", **settings: Any
) -> AttentionLayout:
    """Attention with one projection for queries, keys and values."""
    return AttentionLayout(core, core, {f"{core}.{projection}": makes}, f"{core}.{output}", **settings)


def bert_attention(
    name: str, inner: str = "self", names: tuple[str, str, str] = ("query", "key", "value"), **settings: Any
) -> AttentionLayout:
    """Attention whose output projection sits beside the core rather than in it."""
    core = f"{name}.{inner}"
    made: tuple[Makes, ...] = ("query", "key", "value")
    inputs = {f"{core}.{path}": makes for path, makes in zip(names, made, strict=True)}
    return AttentionLayout(name, core, inputs, f"{name}.output.dense", **settings)


def feed_forward(inputs: str, output: str, name: str | None = None, **settings: Any) -> FeedForwardLayout:
    """A feed-forward sublayer; `inputs` are paths with spaces between them."""
    return FeedForwardLayout(name or output.rpartition(".")[0] or "ffn", tuple(inputs.split()), output, **settings)


# --- attention ---

BERT = bert_attention("attention", residual=Tap("attention.output.LayerNorm"))
BERT_CROSS = bert_attention("crossattention", residual=Tap("crossattention.output.LayerNorm"), cached=False)
BERT_PRE_NORM = bert_attention("attention")
BERT_CROSS_PRE_NORM = bert_attention("crossattention", cached=False)
DISTILBERT = separate("attention", "q_lin", "k_lin", "v_lin", "out_lin", residual=Tap("sa_layer_norm"), cached=False)
LLAMA = separate("self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
GPT_OSS = separate("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", tables={"self_attn.sinks": 0})
PHI = separate("self_attn", "q_proj", "k_proj", "v_proj", "dense")
BART = separate("self_attn", "q_proj", "k_proj", "v_proj", "out_proj", residual=Tap("self_attn_layer_norm"))
BART_CROSS = separate(
    "encoder_attn", "q_proj", "k_proj", "v_proj", "out_proj", residual=Tap("encoder_attn_layer_norm"), cached=False
)
VIT = separate("attention", "q_proj", "k_proj", "v_proj", "o_proj")
CLIP = separate("self_attn", "q_proj", "k_proj", "v_proj", "out_proj")
WAV2VEC2 = separate("attention", "q_proj", "k_proj", "v_proj", "out_proj", residual=Tap("layer_norm"))
ALBERT = separate("attention", "query", "key", "value", "dense", residual=Tap("attention.LayerNorm"), cached=False)
GPT_NEO = separate("attn.attention", "q_proj", "k_proj", "v_proj", "out_proj", name="attn")
GPTJ = separate("attn", "q_proj", "k_proj", "v_proj", "out_proj")
GPT2 = fused("attn", "c_attn", "c_proj")
GPT2_CROSS = AttentionLayout(
    "crossattention",
    "crossattention",
    {"crossattention.q_attn": "query", "crossattention.c_attn": "key+value"},
    "crossattention.c_proj",
    cached=False,
)
GPT_NEOX = fused("attention", "query_key_value", "dense", "groups")
BLOOM = fused("self_attention", "query_key_value", "dense", "groups", arguments={"alibi": "rows"}, returns=None)
FALCON = fused(
    *("self_attention", "query_key_value", "dense", "groups"), arguments={"alibi": "rows", "attention_mask": 1}
)
MPT = fused("attn", "Wqkv", "out_proj", arguments={"position_bias": 0})
MPNET = separate(
    *("attention.attn", "q", "k", "v", "o"),
    name="attention",
    residual=Tap("attention.LayerNorm"),
    cached=False,
    arguments={"position_bias": 1},
)
BEIT = separate("attention", "q_proj", "k_proj", "v_proj", "o_proj", arguments={"attention_mask": 1})
T5 = separate(
    *("layer.0.SelfAttention", "q", "k", "v", "o"),
    tables={"layer.0.SelfAttention.relative_attention_bias.weight": 1},
    arguments={"position_bias": 1},
    shared_bias=True,
    returns=3,
)
T5_CROSS = separate(
    *("layer.1.EncDecAttention", "q", "k", "v", "o"),
    arguments={"position_bias": 1},
    shared_bias=True,
    returns=3,
    cached=False,
)
# Every layer has a table of its own, and nothing is handed on.
UMT5 = separate(
    *("layer.0.SelfAttention", "q", "k", "v", "o"), tables={"layer.0.SelfAttention.relative_attention_bias.weight": 1}
)
UMT5_CROSS = separate("layer.1.EncDecAttention", "q", "k", "v", "o", cached=False)
DEBERTA = AttentionLayout(
    "attention",
    "attention.self",
    {"attention.self.in_proj": "groups"},
    "attention.output.dense",
    optional={"attention.self.pos_proj": "key", "attention.self.pos_q_proj": "query"},
    residual=Tap("attention.output.LayerNorm"),
    cached=False,
)
DEBERTA_V2 = bert_attention(
    "attention",
    names=("query_proj", "key_proj", "value_proj"),
    optional={"attention.self.pos_key_proj": "key", "attention.self.pos_query_proj": "query"},
    residual=Tap("attention.output.LayerNorm"),
    cached=False,
)
PERSIMMON = fused("self_attn", "query_key_value", "dense", "groups")
PHI3 = fused(
    "self_attn", "qkv_proj", "o_proj", per_config={"num_attention_heads": "heads", "num_key_value_heads": "kv"}
)
CODEGEN = fused("attn", "qkv_proj", "out_proj", "slices")
MODERNBERT = fused("attn", "Wqkv", "Wo")

# --- feed-forward ---

BERT_FFN = feed_forward("intermediate.dense", "output.dense", "intermediate", residual=Tap("output.LayerNorm"))
BERT_FFN_PRE_NORM = feed_forward("intermediate.dense", "output.dense", "intermediate")
DISTILBERT_FFN = feed_forward("ffn.lin1", "ffn.lin2", residual=Tap("output_layer_norm"))
GATED_MLP = feed_forward("mlp.gate_proj mlp.up_proj", "mlp.down_proj")
UP_DOWN_MLP = feed_forward("mlp.up_proj", "mlp.down_proj")
FUSED_GATED_MLP = feed_forward("mlp.gate_up_proj", "mlp.down_proj", fused=True)
FC_MLP = feed_forward("mlp.fc1", "mlp.fc2")
BART_FFN = feed_forward("fc1", "fc2", residual=Tap("final_layer_norm"))
GPT2_MLP = feed_forward("mlp.c_fc", "mlp.c_proj")
GPTJ_MLP = feed_forward("mlp.fc_in", "mlp.fc_out")
GPT_NEOX_MLP = feed_forward("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
WAV2VEC2_FFN = feed_forward(
    "feed_forward.intermediate_dense", "feed_forward.output_dense", residual=Tap("final_layer_norm")
)
ALBERT_FFN = feed_forward("ffn", "ffn_output", "ffn", residual=Tap("full_layer_layer_norm"))
T5_FFNS = tuple(
    feed_forward(
        " ".join(f"layer.{place}.DenseReluDense.{path}" for path in inputs), f"layer.{place}.DenseReluDense.wo"
    )
    for place in (1, 2)  # in an encoder, in a decoder
    for inputs in (("wi",), ("wi_0", "wi_1"))
)
# All but the last of MobileBERT's feed-forward networks, up to the four of its published checkpoints.
MOBILEBERT_FFNS = tuple(
    feed_forward(
        *(f"ffn.{index}.intermediate.dense", f"ffn.{index}.output.dense", f"ffn.{index}"),
        residual=Tap(f"ffn.{index}.output.LayerNorm"),
    )
    for index in range(3)
)
SHARED_EXPERT = feed_forward("mlp.shared_expert.gate_proj mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj")
SHARED_EXPERTS = feed_forward("mlp.shared_experts.gate_proj mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj")
MPT_FFN = feed_forward("ffn.up_proj", "ffn.down_proj")
MODERNBERT_MLP = feed_forward("mlp.Wi", "mlp.Wo", fused=True)

# --- mixtures of experts ---

EXPERTS = ExpertsLayout("mlp.experts", "mlp.gate")
ROUTED_EXPERTS = ExpertsLayout("mlp.experts", "mlp.router")
SPARSE_EXPERTS = ExpertsLayout("block_sparse_moe.experts", "block_sparse_moe.router")
