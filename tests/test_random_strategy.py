"""Pruning at random: the same units for the same seed, other ones for another, and never above the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from typer.testing import CliRunner

from hf_prune import (
    AutoPruningConfig,
    FisherPruningConfig,
    PruningError,
    RandomPruningConfig,
    count_flops,
    describe_model,
    prune_model,
)
from hf_prune.anatomy.example_inputs import example_batch
from hf_prune.cli import app
from hf_prune.commands.arguments import RunArguments
from hf_prune.commands.options import make_config, take
from hf_prune.scores import random_scores
from tests.conformance.plans import difference, run
from tests.small_models import scale_weights

_SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2}
MODELS = {
    "bert": (BertForMaskedLM, BertConfig, _SIZES),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"vocab_size": 61, "n_embd": 32, "n_head": 4, "n_layer": 3, **_IDS}),
    "llama": (LlamaForCausalLM, LlamaConfig, {**_SIZES, "num_key_value_heads": 2, **_IDS}),
    "t5": (T5ForConditionalGeneration, T5Config, {**_T5, "decoder_start_token_id": 0}),
    "vit": (ViTForImageClassification, ViTConfig, {**_SIZES, "image_size": 16, "patch_size": 8}),
}


def build(name: str) -> PreTrainedModel:
    model_class, config_class, settings = MODELS[name]
    model = model_class(config_class(**settings)).eval()
    scale_weights(model)
    return model


def random_config(**settings: Any) -> RandomPruningConfig:
    """With a latency report that takes no time."""
    return RandomPruningConfig(latency_batch_size=1, **settings)


def cost(model: PreTrainedModel, budget: str) -> float:
    if budget == "flops":
        return count_flops(model, 10)
    return sum(block.units * block.parameters_per_unit for block in describe_model(model).blocks)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("budget", ["flops", "params"])
def test_no_data_is_needed_and_the_budget_is_kept(name: str, budget: str) -> None:
    model = build(name)
    dense, smallest_unit = cost(model, budget), 0.0
    for block in describe_model(model).blocks:
        smallest_unit = max(smallest_unit, 8 * block.parameters_per_unit)
    prune_model(model, random_config(**{budget: 0.5}, sequence_length=10))
    assert cost(model, budget) <= 0.5 * dense
    if budget == "params":
        assert cost(model, budget) >= 0.5 * dense - smallest_unit


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides(name: str, tmp_path: Path) -> None:
    plans = []
    for seed in (1, 1, 2):
        model = build(name)
        plans.append(prune_model(model, random_config(params=0.5, seed=seed)).plan)
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    model.save_pretrained(tmp_path)
    batch = example_batch(model)
    assert difference(run(type(model).from_pretrained(tmp_path), batch), run(model, batch)) == 0


def test_scores_are_numbers_of_parameters_times_a_uniform_draw() -> None:
    blocks = describe_model(build("llama")).blocks
    state = torch.get_rng_state()
    scores = random_scores(blocks, 3)
    assert torch.equal(torch.get_rng_state(), state)
    shares = torch.cat([score / block.parameters_per_unit for block, score in zip(blocks, scores, strict=True)])
    assert [score.shape for score in scores] == [(block.units,) for block in blocks]
    assert shares.dtype == torch.float64
    assert 0 <= shares.min() < 0.1 < 0.9 < shares.max() <= 1
    assert abs(shares.mean() - 0.5) < 0.1
    assert len(shares.unique()) == len(shares)


def test_every_layer_loses_the_same_number_of_heads_at_random() -> None:
    plans = [prune_model(build("bert"), random_config(heads=0.5, seed=seed)).plan for seed in (1, 1, 2)]
    heads, filters = ([key for key in plans[0].kept if key.endswith(end)] for end in ("attention", "intermediate"))
    assert [len(plans[0].kept[key]) for key in heads] == [2, 2, 2]
    assert [len(plans[0].kept[key]) for key in filters] == [48, 48, 48]
    assert plans[0] == plans[1] != plans[2]
    emptied = prune_model(build("bert"), random_config(heads=0.2, allow_empty_layers=True)).plan
    assert [len(emptied.kept[key]) for key in heads] == [0, 0, 0]


def test_lengths_come_from_the_config_the_data_or_the_positions() -> None:
    lengths = {"sequence_length": 7}
    assert prune_model(build("bert"), random_config(params=0.5, **lengths)).report.sequence_length == 7
    assert prune_model(build("bert"), random_config(params=0.5)).report.sequence_length == 64
    assert prune_model(build("gpt2"), random_config(params=0.5)).report.sequence_length == 128
    data = [{"input_ids": torch.full((2, 9), 5)}]
    assert prune_model(build("bert"), random_config(params=0.5), data).report.sequence_length == 9


def test_other_strategies_still_ask_for_data() -> None:
    model = build("bert")
    anatomy = describe_model(model)
    with pytest.raises(PruningError, match="Calibration data is needed"):
        prune_model(model, FisherPruningConfig(params=0.5))
    assert describe_model(model) == anatomy


def test_layers_that_are_emptied_and_do_nothing_go() -> None:
    model = build("llama")
    result = prune_model(model, random_config(params=0.08, seed=1))
    removed = len(result.plan.removed_layers)
    assert removed >= 1
    assert model.config.num_hidden_layers == len(model.model.layers) == 3 - removed
    assert result.report.pruned.unit_parameters <= 0.08 * result.report.dense.unit_parameters


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs exactly one budget"),
        ({"params": 0.5, "flops": 0.5}, "needs exactly one budget"),
        ({"heads": 0.5, "layers": 2}, "needs exactly one budget"),
        ({"heads": 0.5, "sparsity": 0.5}, "needs exactly one budget"),
        ({"heads": 1.5}, r"heads=1\.5 must lie in \(0, 1\]"),
        ({"params": 0.5, "allow_empty_layers": True}, "use it with heads="),
        ({"params": 0.5, "seed": -1}, "seed=-1 must be a whole number"),
        ({"params": 0.5, "seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"params": 0.5, "seed": True}, "seed=True must be a whole number"),
        ({"params": 0.5, "seed": 2**63}, "must be a whole number"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        RandomPruningConfig(**settings)


def test_config_is_saved_and_found_by_name(tmp_path: Path) -> None:
    config = RandomPruningConfig(flops=0.4, seed=5)
    config.save_pretrained(tmp_path)
    assert AutoPruningConfig.from_pretrained(tmp_path) == config


def test_command_line_knows_the_strategy_and_hands_its_seed_on() -> None:
    options: dict[str, Any] = {"output_dir": Path("small"), "strategy": "random", "seed": 7, "params": 0.5}
    arguments = take(RunArguments, options)
    config = make_config(arguments.strategy, options, seed=arguments.seed)
    assert config == RandomPruningConfig(params=0.5, seed=7)
    asked = "run nowhere --strategy random --recovery none --params 0.5 --output_dir small --train_file rows.tsv"
    result = CliRunner().invoke(app, asked.split())
    assert result.exit_code == 2
    assert "'random' strategy has no setting 'recovery'" in " ".join(result.output.split())
