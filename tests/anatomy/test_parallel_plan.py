"""Layouts that follow from transformers' tensor-parallel plans."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from hf_prune import RandomPruningConfig, describe_model, prune_model
from hf_prune.anatomy.layouts import AttentionLayout, FeedForwardLayout
from hf_prune.anatomy.parallel_plan import planned_sublayers
from hf_prune.anatomy.sublayers import GATED_MLP, LLAMA
from tests.small_models import scale_weights


class StrangeConfig(LlamaConfig):
    """A type that is not in the table, with names that nobody else uses."""

    model_type = "strange"
    base_model_tp_plan = {  # noqa: RUF012
        "layers.*.mixer.to_q": "colwise",
        "layers.*.mixer.to_k": "colwise",
        "layers.*.mixer.to_v": "colwise",
        "layers.*.mixer.back": "rowwise",
        "layers.*.widen.gate": "colwise",
        "layers.*.widen.rise": "colwise",
        "layers.*.widen.fall": "rowwise",
    }


class Mixer(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, size // heads
        self.to_q, self.to_k, self.to_v, self.back = (nn.Linear(size, size, bias=False) for _ in range(4))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        shape = (*hidden.shape[:-1], self.num_heads, self.head_dim)
        query, key, value = (part(hidden).view(shape).transpose(1, 2) for part in (self.to_q, self.to_k, self.to_v))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.back(mixed.transpose(1, 2).flatten(2))


class Widen(nn.Module):
    def __init__(self, size: int, filters: int) -> None:
        super().__init__()
        self.gate, self.rise = (nn.Linear(size, filters, bias=False) for _ in range(2))
        self.fall = nn.Linear(filters, size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fall(self.gate(hidden).sigmoid() * self.rise(hidden))


class StrangeLayer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.mixer = Mixer(config.hidden_size, config.num_attention_heads)
        self.widen = Widen(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> torch.Tensor:
        hidden_states = hidden_states + self.mixer(hidden_states)
        return hidden_states + self.widen(hidden_states)


class StrangeModel(LlamaModel):
    config_class = StrangeConfig

    def __init__(self, config: StrangeConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(StrangeLayer(config) for _ in range(config.num_hidden_layers))


def config() -> StrangeConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return StrangeConfig(**sizes, vocab_size=61)


def test_a_plan_says_what_a_layout_says() -> None:
    assert planned_sublayers(StrangeConfig(), "layers") == (
        AttentionLayout(
            "mixer", "mixer", {"mixer.to_q": "query", "mixer.to_k": "key", "mixer.to_v": "value"}, "mixer.back"
        ),
        FeedForwardLayout("widen", ("widen.gate", "widen.rise"), "widen.fall"),
    )
    assert planned_sublayers(StrangeConfig(), "blocks") == ()
    assert planned_sublayers(LlamaConfig(), "layers") == (LLAMA, GATED_MLP)
    assert planned_sublayers(object(), "layers") == ()


def test_a_model_with_names_of_its_own_is_proved_and_pruned() -> None:
    torch.manual_seed(0)
    model = StrangeModel(config()).eval()
    scale_weights(model)
    anatomy = describe_model(model)
    assert [block.key for block in anatomy.blocks[:2]] == ["layers.0.mixer", "layers.0.widen"]
    assert [(block.units, block.unit) for block in anatomy.blocks[:2]] == [(4, "heads"), (24, "filters")]
    report = prune_model(model, RandomPruningConfig(params=0.5, latency_batch_size=1)).report
    assert report.pruned.flops < report.dense.flops
    assert sum(block.units for block in describe_model(model).blocks) < 2 * (4 + 24)


def test_causal_models_of_the_type_are_found_inside_their_heads() -> None:
    model = LlamaForCausalLM(LlamaConfig(**{**config().to_dict(), "model_type": "llama"}))
    model.model = StrangeModel(config())
    assert len(describe_model(model).blocks) == 4
