"""The card of a model that has lost single weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

import hf_prune
from hf_prune import MagnitudePruningConfig, PruningCallback, RandomPruningConfig, prune_model
from hf_prune.report import PruningReport, WeightReport
from hf_prune.report.card import pruned_model_card
from tests.small_models import case

GOLDEN = Path(__file__).with_name("expected_weight_card.md")
BERT = case("bert", "classification")


@pytest.fixture
def model() -> PreTrainedModel:
    """A tiny model whose config says that weights were removed."""
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=8, max_position_embeddings=16)
    return prune_model(BertForSequenceClassification(config), MagnitudePruningConfig(sparsity=0.5)).model


def snippets(text: str) -> list[str]:
    return re.findall("```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_whole_card(weight_report: WeightReport, model: PreTrainedModel) -> None:
    card = pruned_model_card(
        weight_report,
        model,
        model_id="someone/tiny-sst2-sparse",
        license="apache-2.0",
        dataset="nyu-mll/glue",
        picture="pruning.png",
    )
    assert str(card) == GOLDEN.read_text(encoding="utf-8")


def test_the_snippets_run(weight_report: WeightReport, model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    load, hold = snippets(pruned_model_card(weight_report, model, model_id=tmp_path.as_posix()).text)
    names: dict[str, Any] = {}
    exec(load, names)
    assert type(names["model"]) is BertForSequenceClassification
    names |= {"Trainer": lambda *args, **options: options, "args": None, "train_dataset": None}
    exec(hold, names)
    assert isinstance(names["trainer"]["callbacks"][0], PruningCallback)


def test_hf_prune_is_imported_only_where_it_is_needed(weight_report: WeightReport, model: PreTrainedModel) -> None:
    dense = pruned_model_card(weight_report, model).text
    assert "import hf_prune" not in dense
    assert "hf_prune is not needed to load it" in dense
    packed = pruned_model_card(weight_report, model, packed=True).text
    assert "import hf_prune  # lets transformers read the packed weights\n" in packed
    assert "stored as their other values and one bit per weight" in packed
    assert "hf_prune is not needed" not in packed


def test_a_model_that_was_cut_before(weight_report: WeightReport) -> None:
    cut = BERT.model()
    prune_model(cut, RandomPruningConfig(params=0.5, latency_batch_size=1))
    result = prune_model(cut, MagnitudePruningConfig(sparsity=0.5))
    assert isinstance(result.report, WeightReport)
    card = pruned_model_card(result.report, cut, packed=True).text
    assert "import hf_prune  # lets transformers read the packed weights and build the pruned shapes\n" in card


def test_zeros_of_another_tool_are_held_by_name(weight_report: WeightReport, model: PreTrainedModel) -> None:
    del model.config.pruning
    hold = snippets(pruned_model_card(weight_report, model).text)[1]
    assert "callbacks=[PruningCallback(HoldPruningConfig())]" in hold
    imported = re.findall("from hf_prune import (.*)", hold)[0].split(", ")
    assert imported == ["HoldPruningConfig", "PruningCallback"]
    assert set(imported) <= set(hf_prune.__all__)


def test_nothing_is_held_where_nothing_was_removed(weight_report: WeightReport, model: PreTrainedModel) -> None:
    whole = replace(weight_report, matrices=tuple(replace(row, removed=0) for row in weight_report.matrices))
    assert len(snippets(pruned_model_card(whole, model).text)) == 1


def test_sections_without_content_are_left_out(weight_report: WeightReport) -> None:
    bare = replace(weight_report, strategy={"strategy": "mine"}, matrices=(), stages={}, metrics={}, notes=())
    text = pruned_model_card(bare).text
    headings = re.findall("^## (.*)$", text, flags=re.MULTILINE)
    assert headings == ["Before and after", "How to use", "How it was made", "Notes and limits"]
    assert "\n\n\n" not in text
    assert text.endswith("\n")


@pytest.mark.parametrize(
    ("strategy", "cited"), [("magnitude", "Gordon et al., 2020"), ("movement", "Sanh et al., 2020"), ("random", None)]
)
def test_papers_are_cited_by_strategy(weight_report: WeightReport, strategy: str, cited: str | None) -> None:
    card = pruned_model_card(replace(weight_report, strategy={"strategy": strategy})).text
    assert ("## Citation" in card) == (cited is not None)
    assert cited is None or cited in card


def test_units_pruned_by_magnitude_keep_the_ordinary_card(report: PruningReport) -> None:
    settings = {"strategy": "magnitude", "flops": 0.6, "round_to": 1, "scope": "matrix", "after": "keep_masked"}
    card = pruned_model_card(replace(report, strategy=settings)).text
    assert "3 of 6 heads and 14 of 20 filters kept" in card
    assert "Gordon" not in card
    rows = re.findall(r"^\| `(\w+)` \| `", card, flags=re.MULTILINE)
    assert rows == ["flops", "round_to"]
