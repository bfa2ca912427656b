from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from hf_prune import (
    MetaPruner,
    MetaPrunerConfig,
    PruningConfig,
    PruningError,
    SingleShotPruningConfig,
    describe_model,
    prune_model,
)
from hf_prune.strategies.single_shot.head_scores import score_heads
from tests.family_models import main_head
from tests.small_models import HEADS, LAYERS, Batch, case

BERT = case("bert", "classification")


@pytest.fixture(scope="module")
def pruner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruner")
    torch.manual_seed(0)
    MetaPruner(MetaPrunerConfig(map_size=16, initializer_range=1.0)).save_pretrained(folder)
    return folder


def config_for(pruner: Path, **changes: Any) -> SingleShotPruningConfig:
    return SingleShotPruningConfig(**{"pruner_name_or_path": str(pruner), "input_type": "single"} | changes)


def heads_of(model: Any) -> list[int]:
    return [block.units for block in describe_model(model).attentions]


def test_the_highest_scores_of_each_layer_stay_and_the_model_is_saved_and_loaded(
    pruner: Path, batches: list[Batch], rows: Dataset, tmp_path: Path
) -> None:
    model = BERT.model()
    blocks, scorer = describe_model(model).attentions, MetaPruner.from_pretrained(pruner).eval()
    expected = score_heads(model, blocks, scorer, "single", batches).means()
    unlabelled = rows.remove_columns("labels")
    result = prune_model(model, config_for(pruner, examples=None), unlabelled)
    for block, scores in zip(blocks, expected, strict=True):
        assert list(result.plan.units(block)) == sorted(scores.topk(HEADS // 2).indices.tolist())
    assert heads_of(model) == [HEADS // 2] * LAYERS
    filters = [block.units for block in describe_model(model).feed_forwards]
    assert filters == [block.units for block in describe_model(BERT.model()).feed_forwards]
    result.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(loaded, BertForSequenceClassification)
    assert torch.equal(loaded.eval()(**batches[0]).logits, model.eval()(**batches[0]).logits)
    assert loaded.config._attn_implementation == "sdpa"
    assert "single_shot" in (tmp_path / "README.md").read_text() or "Zhang" in (tmp_path / "README.md").read_text()


def test_single_sentences_and_pairs_are_scored_differently(pruner: Path, batches: list[Batch]) -> None:
    plans = [
        prune_model(BERT.model(), config_for(pruner, input_type=kind), batches).plan for kind in ("single", "pair")
    ]
    assert plans[0] != plans[1]


def test_so_many_examples_are_looked_at(pruner: Path, batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    scores = MetaPruner.scores

    def counted(self: MetaPruner, maps: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(len(maps))
        return scores(self, maps, *rest)

    monkeypatch.setattr(MetaPruner, "scores", counted)
    prune_model(BERT.model(), config_for(pruner, examples=8), batches)
    assert seen == [4] * 2 * LAYERS


@pytest.mark.parametrize(("heads", "kept"), [(1.0, 4), (0.75, 3), (0.3, 1), (0.1, 1)])
def test_a_layer_keeps_at_least_one_head(pruner: Path, batches: list[Batch], heads: float, kept: int) -> None:
    model = BERT.model()
    prune_model(model, config_for(pruner, heads=heads), batches)
    assert heads_of(model) == [kept] * LAYERS


def test_a_layer_loses_all_heads_only_where_that_is_asked_for(pruner: Path, batches: list[Batch]) -> None:
    model = BERT.model()
    prune_model(model, config_for(pruner, heads=0.1, allow_empty_layers=True), batches)
    assert heads_of(model) == [0] * LAYERS
    again = BERT.model()
    only = config_for(pruner, heads=0.1, allow_empty_layers=True, target_modules=["layer.1.attention"])
    prune_model(again, only, batches)
    assert heads_of(again) == [HEADS, 0, HEADS]
    prune_model(again, config_for(pruner), batches)  # what has no heads is not scored
    assert heads_of(again) == [HEADS // 2, 0, HEADS // 2]


def test_key_value_groups_go_as_wholes(pruner: Path) -> None:
    model = main_head("llama").model(num_attention_heads=8, num_key_value_heads=4)
    prune_model(model, config_for(pruner), [{"input_ids": torch.arange(5, 19).reshape(2, 7)}])
    assert heads_of(model) == [2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruner_name_or_path": None}, "pruner_name_or_path=None must name a MetaPruner"),
        ({"input_type": None}, "input_type=None is unknown; use one of single, pair"),
        ({"heads": None}, "SingleShotPruningConfig needs heads="),
        ({"heads": 0.0}, r"heads=0.0 must lie in \(0, 1\]"),
        ({"examples": 0}, "examples=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(pruner: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        config_for(pruner, **changes)


def test_its_configuration_is_saved_and_loaded(pruner: Path, tmp_path: Path) -> None:
    config = config_for(pruner, heads=0.25, input_type="pair")
    config.save_pretrained(tmp_path)
    assert PruningConfig.from_pretrained(tmp_path) == config


def test_a_folder_without_a_pruner_is_refused(batches: list[Batch], tmp_path: Path) -> None:
    model = BERT.model()
    with pytest.raises(PruningError, match="No MetaPruner could be loaded from"):
        prune_model(model, config_for(tmp_path / "nowhere"), batches)
    BERT.model().save_pretrained(tmp_path)
    with pytest.raises(PruningError, match="holds a model of type 'bert', not a MetaPruner"):
        prune_model(model, config_for(tmp_path), batches)
    assert heads_of(model) == [HEADS] * LAYERS


def test_mixed_data_is_refused_before_anything_is_cut(pruner: Path, batches: list[Batch]) -> None:
    model = BERT.model()
    types = torch.zeros_like(batches[1]["input_ids"])
    types[2, 1] = 1
    with pytest.raises(PruningError, match="1 of 4 examples of a batch have a second text"):
        prune_model(model, config_for(pruner), [batches[0], batches[1] | {"token_type_ids": types}])
    with pytest.raises(PruningError, match="calibration data is empty"):
        prune_model(model, config_for(pruner), [])
    assert heads_of(model) == [HEADS] * LAYERS


def test_an_untrained_task_head_is_as_it_should_be(
    pruner: Path, batches: list[Batch], caplog: pytest.LogCaptureFixture
) -> None:
    model = BertForSequenceClassification(BERT.config()).eval()
    with caplog.at_level(logging.WARNING, logger="hf_prune"):
        prune_model(model, config_for(pruner), batches)
    assert "newly initialised" not in caplog.text
