from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForPreTraining,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_prune import LayerDropPruningConfig, RandomPruningConfig, prune_model
from hf_prune.report import PruningReport
from hf_prune.report.card import pruned_model_card
from hf_prune.report.tasks import Task, task_of
from tests.small_models import case

GOLDEN = Path(__file__).with_name("expected_card.md")
SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}


@pytest.fixture
def model() -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(**SIZES))


def metadata(card: ModelCard) -> dict[str, Any]:
    return yaml.safe_load(str(card).split("---\n")[1])


def test_the_whole_card(report: PruningReport, model: PreTrainedModel) -> None:
    card = pruned_model_card(
        report,
        model,
        model_id="someone/tiny-sst2-small",
        license="apache-2.0",
        language="en",
        tags=("demo",),
        dataset="nyu-mll/glue",
        picture="kept.png",
    )
    assert str(card) == GOLDEN.read_text(encoding="utf-8")


def test_metadata(report: PruningReport, model: PreTrainedModel) -> None:
    card = pruned_model_card(report, model, license="mit", language=["en", "de"], tags=("demo", "pruned"))
    metrics = [
        {"type": "loss", "value": 0.3125},
        {"type": "accuracy", "value": 0.9},
        {"type": "f1", "value": 0.5},
    ]
    assert metadata(card) == {
        "base_model": "someone/tiny-sst2",
        "language": ["en", "de"],
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-classification",
        "tags": ["hf_prune", "pruned", "demo"],
        "model-index": [
            {
                "name": "tiny-sst2-pruned",
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {"name": "unknown", "type": "unknown"},
                        "metrics": metrics,
                    }
                ],
            }
        ],
    }


def test_what_is_not_known_is_not_in_the_metadata(report: PruningReport) -> None:
    assert metadata(pruned_model_card(report)) == {
        "base_model": "someone/tiny-sst2",
        "library_name": "transformers",
        "tags": ["hf_prune", "pruned"],
    }


def test_no_results_without_metrics_and_no_nan(report: PruningReport, model: PreTrainedModel) -> None:
    assert "model-index" not in metadata(pruned_model_card(replace(report, metrics={}), model))
    odd = replace(report, metrics={"pruned": {"loss": float("nan"), "eval_accuracy": 2 / 3}})
    (index,) = metadata(pruned_model_card(odd, model))["model-index"]
    assert index["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.666667}]


@pytest.mark.parametrize(
    ("name", "given", "base"),
    [
        ("someone/tiny-sst2", None, "someone/tiny-sst2"),
        ("someone/tiny-sst2", "other/base", "other/base"),
        ("bert-base-uncased", None, None),
        ("bert-base-uncased", "bert-base-uncased", "bert-base-uncased"),
        ("BertForSequenceClassification", None, None),
        ("./tiny-sst2", None, None),
        ("/models/tiny-sst2", None, None),
        ("/models/tiny-sst2", "someone/tiny-sst2", "someone/tiny-sst2"),
        ("out/models/tiny-sst2", None, None),
        ("C:\\models\\tiny-sst2", None, None),
        ("models/here", None, None),
        ("x", "models/here", None),
        ("", None, None),
    ],
)
def test_a_local_path_is_no_base_model(
    report: PruningReport,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    given: str | None,
    base: str | None,
) -> None:
    (tmp_path / "models" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = pruned_model_card(replace(report, model_name=name), base_model=given)
    assert metadata(card).get("base_model") == base
    assert ("huggingface.co" in card.text) == (base is not None)


def test_the_card_does_not_tell_where_the_model_lay(report: PruningReport) -> None:
    text = str(pruned_model_card(replace(report, model_name="/home/secret/tiny-sst2")))
    assert "secret" not in text
    assert "# tiny-sst2, pruned" in text


def test_sections_without_content_are_left_out(report: PruningReport, model: PreTrainedModel) -> None:
    bare = replace(report, strategy={"strategy": "mine"}, blocks=(), stages={}, notes=(), latency_setting=None)
    text = pruned_model_card(bare, model).text
    headings = re.findall("^## (.*)$", text, flags=re.MULTILINE)
    assert headings == ["Before and after", "How to use", "How it was made", "Notes and limits"]
    assert "The strategy `mine` with its default settings.\n" in text
    assert "\n\n\n" not in text
    assert text.endswith("\n")


def test_the_snippet_runs(report: PruningReport, model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    text = pruned_model_card(report, model, model_id=tmp_path.as_posix()).text
    (snippet,) = re.findall("```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert type(names["model"]) is BertForSequenceClassification


def test_a_saved_card_loads_again(report: PruningReport, model: PreTrainedModel, tmp_path: Path) -> None:
    card = pruned_model_card(report, model)
    card.save(tmp_path / "README.md")
    assert str(ModelCard.load(tmp_path / "README.md")) == str(card)


@pytest.mark.parametrize(
    ("model_class", "config", "task"),
    [
        (BertForTokenClassification, BertConfig, Task("AutoModelForTokenClassification", "token-classification")),
        (BertForQuestionAnswering, BertConfig, Task("AutoModelForQuestionAnswering", "question-answering")),
        (BertForMultipleChoice, BertConfig, Task("AutoModelForMultipleChoice", "multiple-choice")),
        (BertForMaskedLM, BertConfig, Task("AutoModelForMaskedLM", "fill-mask")),
        (BertLMHeadModel, BertConfig, Task("AutoModelForCausalLM", "text-generation")),
        (BertForNextSentencePrediction, BertConfig, Task("AutoModelForNextSentencePrediction", None)),
        (BertForPreTraining, BertConfig, Task("AutoModelForPreTraining", None)),
        (BertModel, BertConfig, Task("AutoModel", "feature-extraction")),
        (RobertaForMaskedLM, RobertaConfig, Task("AutoModelForMaskedLM", "fill-mask")),
        (ElectraForPreTraining, ElectraConfig, Task("AutoModelForPreTraining", None)),
    ],
)
def test_the_task_follows_from_the_class(model_class: Any, config: Any, task: Task) -> None:
    assert task_of(model_class(config(**SIZES))) == task


def test_the_task_of_distilbert() -> None:
    config = DistilBertConfig(vocab_size=16, dim=8, n_layers=1, n_heads=2, hidden_dim=8, max_position_embeddings=16)
    model = DistilBertForSequenceClassification(config)
    assert task_of(model) == Task("AutoModelForSequenceClassification", "text-classification")


def test_a_subclass_has_its_parents_task(model: PreTrainedModel) -> None:
    class MyBert(BertForSequenceClassification):
        pass

    assert task_of(MyBert(model.config)) == task_of(model)


def test_the_class_counts_before_what_the_config_remembers(model: PreTrainedModel) -> None:
    model.config.architectures = ["BertForMaskedLM"]
    assert task_of(model) == Task("AutoModelForSequenceClassification", "text-classification")


def test_the_config_tells_the_task_of_a_foreign_class(model: PreTrainedModel) -> None:
    class Foreign(PreTrainedModel):
        config_class = BertConfig
        _supports_sdpa = True

    model.config.architectures = ["BertForTokenClassification"]
    assert task_of(Foreign(model.config)) == Task("AutoModelForTokenClassification", "token-classification")
    model.config.architectures = None
    assert task_of(Foreign(model.config)) == Task("AutoModel", "feature-extraction")


def test_whole_layers_less_are_told_and_need_no_import() -> None:
    item = case("bert", "classification")
    result = prune_model(item.model(), LayerDropPruningConfig(layers=2))
    text = pruned_model_card(result.report, result.model).text
    assert "with 2 of 3 layers, 8 of 12 heads and 80 of 120 filters kept" in text
    assert "import hf_prune" not in text
    assert "The layers that are left are whole, so transformers loads it without `hf-prune`. The tokenizer is" in text
    again = prune_model(result.model, RandomPruningConfig(flops=0.5, round_to=1, latency_batch_size=1))
    text = pruned_model_card(again.report, again.model).text
    assert "```python\nimport hf_prune  # lets transformers build the pruned shapes\nfrom transformers" in text
    assert "has to be installed and imported" in text
    assert "- The model had been pruned before: 'dense' is what it was after that" in text
