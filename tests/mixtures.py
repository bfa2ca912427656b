"""Small mixtures of experts whose every filter and expert matters, and plans for them."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_prune.anatomy import ModelAnatomy
from hf_prune.surgery import PruningPlan
from tests.small_models import Batch, scale_weights

EXPERTS, FILTERS, HIDDEN, VOCABULARY, PER_TOKEN = 6, 24, 32, 61, 2

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": PER_TOKEN,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
# Ways in which experts are stored: gate and value one after the other or interleaved, rows or columns first, with and
# without biases, beside a shared expert, with a router in another place.
MIXTURES = {
    "mixtral": {"intermediate_size": FILTERS, "num_local_experts": EXPERTS},
    "qwen3_moe": {
        "moe_intermediate_size": FILTERS,
        "num_experts": EXPERTS,
        "head_dim": 8,
        "mlp_only_layers": [0],
        "intermediate_size": 20,
    },
    "olmoe": {"intermediate_size": FILTERS, "num_experts": EXPERTS},
    "qwen2_moe": {
        "moe_intermediate_size": FILTERS,
        "num_experts": EXPERTS,
        "shared_expert_intermediate_size": 20,
    },
    "gpt_oss": {"intermediate_size": FILTERS, "num_local_experts": EXPERTS, "head_dim": 8},
    "granitemoe": {"intermediate_size": FILTERS, "num_local_experts": EXPERTS},
}


# Its router corrects its choice by statistics that it keeps for every expert.
WITH_STATISTICS = {
    "n_routed_experts": EXPERTS,
    "moe_intermediate_size": FILTERS,
    "intermediate_size": 20,
    "head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


def mixture(model_type: str, seed: int = 0, experts: str = "grouped_mm") -> PreTrainedModel:
    """A small language model in evaluation mode, with weights that matter."""
    config = AutoConfig.for_model(model_type, **_SIZES, **(MIXTURES | {"glm4_moe": WITH_STATISTICS})[model_type])
    model = AutoModelForCausalLM.from_config(config).eval()
    model.set_experts_implementation(experts)
    scale_weights(model, seed)
    return model


def batch(seed: int = 0, lengths: tuple[int, ...] = (9, 6, 8)) -> Batch:
    """Padded texts with labels."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=generator).where(mask.bool(), torch.tensor(1))
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask.bool(), torch.tensor(-100))}


def filters_plan(anatomy: ModelAnatomy, kept: int, seed: int = 0) -> PruningPlan:
    """Every expert keeps `kept` filters of its own; everything else stays."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {
        block.key: sorted(torch.randperm(block.units, generator=generator)[:kept].tolist())
        for block in anatomy.blocks
        if block.group is not None
    }
    return PruningPlan({key: tuple(units) for key, units in chosen.items()})


def experts_plan(anatomy: ModelAnatomy, kept: int, seed: int = 0) -> tuple[ModelAnatomy, PruningPlan]:
    """Whole experts as units, of which `kept` stay in each layer."""
    generator = torch.Generator().manual_seed(seed)
    whole = anatomy.with_whole_experts([block.key for block in anatomy.experts])
    chosen = {
        block.key: sorted(torch.randperm(block.units, generator=generator)[:kept].tolist()) for block in anatomy.experts
    }
    return whole, PruningPlan({key: tuple(units) for key, units in chosen.items()})
