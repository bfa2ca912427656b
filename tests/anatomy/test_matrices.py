from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration, ViTConfig, ViTModel

from hf_prune import MagnitudePruningConfig, PruningError, prune_model
from hf_prune.anatomy import all_matrices, choose_matrices
from tests.mixtures import EXPERTS, MIXTURES, mixture
from tests.small_models import LAYERS, case

PER_LAYER = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
PER_LAYER = (*PER_LAYER, "intermediate.dense", "output.dense")


def default(model: nn.Module, only_layers: bool = False) -> list[str]:
    config = MagnitudePruningConfig(sparsity=0.5)
    return [matrix.name for matrix in choose_matrices(model, config.targets, only_layers=only_layers)]


def test_bert_has_the_matrices_of_the_paper() -> None:
    """Gordon et al.: six in each layer, the word embeddings and the pooler."""
    model = case("bert", "classification").model()
    layers = [f"bert.encoder.layer.{layer}.{name}.weight" for layer in range(LAYERS) for name in PER_LAYER]
    words, pooler = "bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight"
    assert default(model) == [words, *layers, pooler]
    assert default(model, only_layers=True) == layers
    everything = {matrix.name for matrix in all_matrices(model)}
    assert {"classifier.weight", "bert.embeddings.position_embeddings.weight"} <= everything


def test_language_models_head_is_left_out_unless_it_is_the_embeddings() -> None:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 31, "n_positions": 8}
    tied = GPT2LMHeadModel(GPT2Config(**sizes))
    names = default(tied)
    assert names[0] == "transformer.wte.weight"
    assert "transformer.wpe.weight" not in names
    assert "lm_head.weight" not in names
    axes = {
        matrix.kind: matrix.input_axis for matrix in choose_matrices(tied, MagnitudePruningConfig(sparsity=0.5).targets)
    }
    assert axes["attn.c_attn"] == 0  # Conv1D stores [inputs, outputs]
    untied = GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False))
    assert "lm_head.weight" not in default(untied)
    assert "lm_head.weight" in [matrix.name for matrix in all_matrices(untied)]


def test_encoder_decoder_and_images() -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 31}
    t5 = T5ForConditionalGeneration(T5Config(**sizes))
    names = default(t5)
    assert names[0] == "shared.weight"
    assert (
        len(names) == len(set(names)) == 1 + (4 + 2) + (8 + 2)
    )  # encoder: attention, FFN; decoder: two attentions, FFN
    vit = ViTModel(
        ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
        )
    )
    assert not any("patch" in name or "position" in name for name in default(vit))
    assert len(default(vit, only_layers=True)) == 6


@pytest.mark.parametrize("model_type", MIXTURES)
def test_experts_are_matrices(model_type: str) -> None:
    matrices = choose_matrices(mixture(model_type), MagnitudePruningConfig(sparsity=0.5).targets)
    experts = [matrix for matrix in matrices if matrix.parameter.dim() == 3]
    assert experts
    assert all(matrix.parameter.shape[0] == EXPERTS for matrix in experts)


def test_patterns_choose_modules_as_peft_does() -> None:
    model = case("bert", "classification").model()

    def named(**settings: list[str]) -> list[str]:
        config = MagnitudePruningConfig(sparsity=0.5, **settings)
        return [matrix.name for matrix in choose_matrices(model, config.targets)]

    assert named(target_modules=["query"]) == [
        f"bert.encoder.layer.{layer}.attention.self.query.weight" for layer in range(LAYERS)
    ]
    assert named(target_modules=["classifier"]) == ["classifier.weight"]
    assert "bert.embeddings.word_embeddings.weight" not in named(exclude_modules=["word_embeddings"])
    assert named(target_modules=[r".*layer\.0\..*"], exclude_modules=["dense"]) == [
        f"bert.encoder.layer.0.attention.self.{name}.weight" for name in ("query", "key", "value")
    ]
    with pytest.raises(PruningError, match=r"'queri' matches nothing. Did you mean 'query'"):
        named(target_modules=["queri"])


def test_adapters_are_not_pruned() -> None:
    model = case("bert", "classification").model()
    before = default(model)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS"))
    names = default(wrapped)
    assert not any("lora" in name for name in names)
    assert len(names) == len(before)
    assert sum(name.endswith("query.base_layer.weight") for name in names) == LAYERS
    config = MagnitudePruningConfig(sparsity=0.5, target_modules=["query"])
    assert len(choose_matrices(wrapped, config.targets)) == LAYERS


def test_what_cannot_be_pruned_is_refused() -> None:
    model = case("bert", "classification").model()
    query = model.bert.encoder.layer[1].attention.self.query
    query.weight = nn.Parameter(query.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(PruningError, match=r"layer.1.attention.self.query.weight holds int8"):
        default(model)
    config = MagnitudePruningConfig(sparsity=0.5, exclude_modules=["layer.1.attention.self.query"])
    assert choose_matrices(model, config.targets)
    with torch.device("meta"):
        empty = type(model)(model.config)
    with pytest.raises(PruningError, match="meta device"):
        default(empty)


def test_weights_that_are_spread_over_devices_are_refused() -> None:
    model = case("bert", "classification").model()
    model.bert.pooler.dense.weight.ds_id = 3  # what ZeRO-3 leaves on a parameter
    with pytest.raises(PruningError, match=r"bert\.pooler\.dense\.weight is spread over several devices"):
        default(model)


def test_what_a_cut_left_empty_is_no_matrix() -> None:
    model = case("bert", "classification").model()
    query = model.bert.encoder.layer[0].attention.self.query
    query.weight = nn.Parameter(query.weight.detach()[:0])
    assert "bert.encoder.layer.0.attention.self.query.weight" not in default(model)


@pytest.mark.parametrize("model_type", ["gpt_oss", "mixtral"])
def test_patterns_lie_along_the_inputs_of_experts_however_they_are_stored(model_type: str) -> None:
    model = mixture(model_type)
    prune_model(model, MagnitudePruningConfig(pattern="2:4", target_modules=["experts"]))
    found = 0
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 3:
                weights = parameter.transpose(1, 2) if module.is_transposed else parameter
                groups = weights.reshape(-1, 4)
                assert (groups.count_nonzero(dim=1) == 2).all()
                found += 1
    assert found == 2 * model.config.num_hidden_layers
