"""What modelling code calls the sizes of attention and FFN modules.

Attributes with these names follow a cut, provided that their value is what the projections' sizes say; so a family
does not have to list them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size", "d_kv", "dim_head", "d_head")
HEADS = (
    *("num_heads", "num_attention_heads", "n_heads", "n_head", "num_query_heads", "nhead", "local_num_heads"),
    *("n_local_heads", "num_local_heads", "attention_heads"),
)
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "num_kv", "kv_heads", "n_local_kv_heads")
GROUPS = ("num_key_value_groups", "n_rep", "num_groups", "num_queries_per_kv")
WIDTHS = (
    *("all_head_size", "embed_dim", "inner_dim", "hidden_size", "split_size", "dim", "q_size", "d_attn", "d_inner"),
    *("attn_hidden_size", "projection_size", "query_dim", "attention_dim", "qkv_dim", "d_model", "hidden_dim"),
)
KV_WIDTHS = ("kv_dim", "kv_size", "kv_hidden_size", "kv_proj_dim")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("top_k", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
FILTERS = ("intermediate_size", "hidden_features", "ffn_dim", "intermediate_dim", "d_ff", "inner_size")


def first_number(holder: Any, names: Sequence[str]) -> int | None:
    """The first of the named attributes that is a whole number above zero."""
    for name in names:
        try:
            value = getattr(holder, name, None)
        except RuntimeError:  # an entry of a config that differs between layers
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def matching(holder: Any, names: Sequence[str], value: int) -> Iterator[str]:
    """The named attributes of the object itself that have `value`."""
    for name in names:
        found = vars(holder).get(name)
        if isinstance(found, int) and not isinstance(found, bool) and found == value:
            yield name
