from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MixtralConfig,
    MixtralModel,
    PreTrainedModel,
)

from hf_prune.errors import PruningError
from hf_prune.report import sparsity_per_filter, sparsity_per_head

HIDDEN, HEADS, SIZE, FILTERS = 24, 4, 6, 20


def bert() -> PreTrainedModel:
    return BertModel(
        BertConfig(
            vocab_size=20,
            hidden_size=HIDDEN,
            num_attention_heads=HEADS,
            num_hidden_layers=2,
            intermediate_size=FILTERS,
            max_position_embeddings=8,
        )
    )


def llama() -> PreTrainedModel:
    return LlamaModel(
        LlamaConfig(
            vocab_size=20,
            hidden_size=HIDDEN,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            num_hidden_layers=2,
            intermediate_size=FILTERS,
        )
    )


def random_masks(model: PreTrainedModel, sparsity: float = 0.4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(parameter.shape, generator=generator) >= sparsity
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }


@torch.no_grad()
def apply(model: PreTrainedModel, masks: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.copy_(torch.where(masks[name], 1.0, 0.0))


def zeros(parts: list[torch.Tensor]) -> float:
    """The share of zeros in all parts together, one entry at a time."""
    entries = [entry for part in parts for entry in part.flatten().tolist()]
    return sum(entry == 0 for entry in entries) / len(entries)


def test_heads_and_filters_of_bert_are_slices_of_its_matrices() -> None:
    model = bert()
    apply(model, random_masks(model))
    heads, filters = sparsity_per_head(model), sparsity_per_filter(model)
    assert list(heads) == ["encoder.layer.0.attention", "encoder.layer.1.attention"]
    for index, layer in enumerate(model.encoder.layer):
        mine, out = layer.attention.self, layer.attention.output.dense
        found = heads[f"encoder.layer.{index}.attention"]
        assert (found.dtype, found.shape) == (torch.float64, (HEADS,))
        for head in range(HEADS):
            rows = slice(head * SIZE, (head + 1) * SIZE)
            parts = [part.weight[rows] for part in (mine.query, mine.key, mine.value)]
            assert found[head] == pytest.approx(zeros([*parts, out.weight[:, rows]]))
        found = filters[f"encoder.layer.{index}.intermediate"]
        for unit in range(FILTERS):
            parts = [layer.intermediate.dense.weight[unit], layer.output.dense.weight[:, unit]]
            assert found[unit] == pytest.approx(zeros(parts))


def test_fused_and_transposed_projections() -> None:
    model = GPT2Model(GPT2Config(vocab_size=20, n_embd=HIDDEN, n_head=HEADS, n_layer=1, n_inner=FILTERS, n_positions=8))
    apply(model, random_masks(model))
    (found,) = sparsity_per_head(model).values()
    attention = model.h[0].attn
    for head in range(HEADS):
        rows = [slice(part * HIDDEN + head * SIZE, part * HIDDEN + (head + 1) * SIZE) for part in range(3)]
        parts = [attention.c_attn.weight[:, row] for row in rows]
        assert found[head] == pytest.approx(zeros([*parts, attention.c_proj.weight[rows[0]]]))


def test_heads_that_share_keys_and_values_are_one() -> None:
    model = llama()
    apply(model, random_masks(model))
    for layer, found in zip(model.layers, sparsity_per_head(model).values(), strict=True):
        attention = layer.self_attn
        assert found.shape == (2,)
        for group in range(2):
            shared, own = slice(group * SIZE, (group + 1) * SIZE), slice(group * 2 * SIZE, (group + 1) * 2 * SIZE)
            parts = [attention.q_proj.weight[own], attention.k_proj.weight[shared], attention.v_proj.weight[shared]]
            assert found[group] == pytest.approx(zeros([*parts, attention.o_proj.weight[:, own]]))


def mixtral() -> PreTrainedModel:
    return MixtralModel(
        MixtralConfig(
            vocab_size=20,
            hidden_size=HIDDEN,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            num_hidden_layers=2,
            intermediate_size=FILTERS,
            num_local_experts=3,
        )
    )


@pytest.mark.parametrize("make", [bert, llama, mixtral])
@pytest.mark.parametrize("measure", [sparsity_per_head, sparsity_per_filter])
def test_masks_say_the_same_as_the_zeros_that_they_leave(make, measure) -> None:
    model = make()
    masks = random_masks(model)
    with_masks = measure(model, masks)
    apply(model, masks)
    with_zeros = measure(model)
    assert list(with_masks) == list(with_zeros)
    for key, shares in with_masks.items():
        assert torch.equal(shares, with_zeros[key])
        assert 0.1 < float(shares.min()) < float(shares.max()) < 0.7


def test_a_whole_expert_filter_shows_in_that_expert_alone() -> None:
    model = mixtral()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
        experts = model.layers[1].mlp.experts
        experts.gate_up_proj[2, 5] = 0
        experts.gate_up_proj[2, FILTERS + 5] = 0
        experts.down_proj[2, :, 5] = 0
    found = sparsity_per_filter(model)
    assert len(found) == 2 * 3
    gone = {(key, unit) for key, shares in found.items() for unit in shares.nonzero().flatten().tolist()}
    ((key, unit),) = gone
    assert key.startswith("layers.1.")
    assert key.endswith(".2")
    assert (unit, float(found[key][unit])) == (5, 1.0)


def test_a_parameter_without_a_mask_counts_as_kept() -> None:
    model = bert()
    name = "encoder.layer.0.attention.self.query.weight"
    found = sparsity_per_head(model, {name: torch.zeros(HIDDEN, HIDDEN, dtype=torch.bool)})
    assert found["encoder.layer.0.attention"].tolist() == pytest.approx([0.25] * HEADS)
    assert found["encoder.layer.1.attention"].tolist() == [0] * HEADS


def test_masks_of_another_model_are_refused() -> None:
    with pytest.raises(PruningError, match=r"'bert\.w', but BertModel has no parameter"):
        sparsity_per_head(bert(), {"bert.w": torch.ones(2, 2, dtype=torch.bool)})
    name = "encoder.layer.0.attention.self.query.weight"
    with pytest.raises(PruningError, match=r"shape \(2, 2\), the parameter \(24, 24\)"):
        sparsity_per_head(bert(), {name: torch.ones(2, 2, dtype=torch.bool)})
