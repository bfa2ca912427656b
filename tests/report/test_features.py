from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from hf_prune.errors import PruningError
from hf_prune.report import feature_similarity
from tests.small_models import LAYERS, Batch, case, scale_weights


@torch.no_grad()
def brute(one: PreTrainedModel, other: PreTrainedModel, batches: list[Batch]) -> list[float]:
    """Each text alone, without padding, one token at a time."""
    found: list[list[float]] = [[] for _ in range(LAYERS + 1)]
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            row = ids[mask.bool()][None]
            states = [model(row, output_hidden_states=True).hidden_states for model in (one, other)]
            for values, first, second in zip(found, *states, strict=True):
                for a, b in zip(first[0].double(), second[0].double(), strict=True):
                    values.append(float(a @ b / (a @ a).sqrt() / (b @ b).sqrt()))
    return [sum(values) / len(values) for values in found]


def masked(model: PreTrainedModel, every: int) -> PreTrainedModel:
    """A copy without each `every`-th weight of its layers."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            if parameter.dim() == 2 and "encoder.layer" in name:
                parameter.view(-1)[::every] = 0
    return copied


def test_similarities_are_those_of_single_tokens(batches: list[Batch]) -> None:
    dense = case("bert", "classification").model()
    pruned = masked(dense, 3)
    found = feature_similarity(dense, pruned, batches)
    assert list(found) == ["hidden_states"]
    assert found["hidden_states"].dtype == torch.float64
    assert found["hidden_states"].tolist() == pytest.approx(brute(dense, pruned, batches), abs=1e-5)
    assert found["hidden_states"][0] == pytest.approx(1)
    assert float(found["hidden_states"][1:].max()) < 0.99


def test_how_rows_are_batched_does_not_matter(batches: list[Batch], rows: Any) -> None:
    dense = case("bert", "classification").model()
    pruned = masked(dense, 2)
    one, other = feature_similarity(dense, pruned, batches), feature_similarity(dense, pruned, rows, batch_size=5)
    torch.testing.assert_close(one["hidden_states"], other["hidden_states"], rtol=1e-5, atol=1e-6)


def test_heads_may_differ(batches: list[Batch]) -> None:
    dense = case("bert", "classification").model()
    bare = case("bert", "masked").model(seed=1)
    bare.bert.load_state_dict(dense.bert.state_dict(), strict=False)
    assert feature_similarity(dense, bare, batches)["hidden_states"].tolist() == pytest.approx([1] * (LAYERS + 1))


def test_models_run_in_evaluation_mode_and_get_theirs_back(batches: list[Batch]) -> None:
    dense = case("bert", "classification").model().train()
    pruned = copy.deepcopy(dense)
    pruned.bert.embeddings.eval()
    found = feature_similarity(dense, pruned, batches)
    assert found["hidden_states"].tolist() == pytest.approx([1] * (LAYERS + 1))
    assert all(module.training for module in dense.modules())
    assert pruned.training
    assert not pruned.bert.embeddings.training


def test_encoder_and_decoder_are_apart_and_without_padding() -> None:
    config = T5Config(
        vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=4, pad_token_id=0
    )
    config.decoder_start_token_id = 0
    dense = T5ForConditionalGeneration(config).eval()
    scale_weights(dense)
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.decoder.block[1].layer[2].DenseReluDense.wo.weight[:, ::2] = 0
    ids = torch.randint(1, 30, (2, 6), generator=torch.Generator().manual_seed(0))
    labels = ids[:, :4].clone()
    short = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    padding = torch.zeros(2, 3, dtype=torch.long)
    long = {
        "input_ids": torch.cat([ids, padding], 1),
        "attention_mask": torch.cat([torch.ones_like(ids), padding], 1),
        "labels": torch.cat([labels, padding - 100], 1),
    }
    found, padded = (feature_similarity(dense, pruned, [batch]) for batch in (short, long))
    assert {name: len(values) for name, values in found.items()} == {
        "encoder_hidden_states": 3,
        "decoder_hidden_states": 4,
    }
    for name, values in found.items():
        torch.testing.assert_close(values, padded[name], rtol=1e-5, atol=1e-6)
    assert found["encoder_hidden_states"].tolist() == pytest.approx([1] * 3)
    assert found["decoder_hidden_states"][:2].tolist() == pytest.approx([1] * 2)
    assert float(found["decoder_hidden_states"][2]) < 0.999


@torch.no_grad()
def test_every_patch_of_an_image_counts() -> None:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, image_size=8, patch_size=4
    )
    dense, pruned = ViTModel(config).eval(), ViTModel(config).eval()
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    states = [model(images, output_hidden_states=True).hidden_states for model in (dense, pruned)]
    expected = [float(torch.cosine_similarity(*pair, dim=-1).mean()) for pair in zip(*states, strict=True)]
    found = feature_similarity(dense, pruned, [{"pixel_values": images[:2]}, {"pixel_values": images[2:]}])
    assert found["hidden_states"].tolist() == pytest.approx(expected, abs=1e-5)


def test_models_of_other_depth_are_refused(batches: list[Batch]) -> None:
    one, other = case("bert", "classification").model(), case("bert", "classification").model(num_hidden_layers=2)
    with pytest.raises(PruningError, match=r"4 hidden_states of \[4, 9, 32\], and 3 hidden_states"):
        feature_similarity(one, other, batches)


def test_a_model_without_hidden_states_of_its_own_is_refused() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = CLIPConfig(
        text_config=sizes | {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 2},
        vision_config=sizes | {"image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    model = CLIPModel(config)
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long), "pixel_values": torch.randn(2, 3, 8, 8)}
    with pytest.raises(PruningError, match="CLIPModel shows no hidden states"):
        feature_similarity(model, model, [batch])


def test_data_of_padding_alone_are_refused(batches: list[Batch]) -> None:
    model = case("bert", "classification").model()
    empty = {**batches[0], "attention_mask": torch.zeros_like(batches[0]["attention_mask"])}
    with pytest.raises(PruningError, match="all of it is padding"):
        feature_similarity(model, model, [empty])
