"""Gated models as classes: they build, train, save under the original name and load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from hf_prune import FilterGateMixin, HeadGateMixin, describe_model
from tests.conformance.plans import difference, prune, run
from tests.small_models import FILTERS, HEADS, case, scale_weights

BERT = case("bert", "classification")


class HeadGatedBert(HeadGateMixin, BertForSequenceClassification):
    pass


class GatedBert(HeadGateMixin, FilterGateMixin, BertForSequenceClassification):
    pass


class GatedDistilBert(FilterGateMixin, HeadGateMixin, DistilBertForSequenceClassification):
    pass


ORIGINAL = {GatedBert: BertForSequenceClassification, GatedDistilBert: DistilBertForSequenceClassification}


def gated(model_class: type = GatedBert) -> GatedBert:
    item = BERT if issubclass(model_class, BertForSequenceClassification) else case("distilbert", "classification")
    model = model_class(item.config()).eval()
    scale_weights(model)
    return model


def with_values(model: GatedBert) -> GatedBert:
    """Gates that no model would go without noticing."""
    generator = torch.Generator().manual_seed(0)
    model.add_head_gates([torch.randn(HEADS, generator=generator) for _ in range(3)])
    model.add_filter_gates([torch.rand(FILTERS, generator=generator) for _ in range(3)])
    return model


@pytest.mark.parametrize("model_class", [GatedBert, GatedDistilBert])
def test_built_without_gates(model_class: type) -> None:
    model = gated(model_class)
    assert model.head_gates is None
    assert model.filter_gates is None
    plain = BERT.model() if model_class is GatedBert else case("distilbert", "classification").model()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert difference(run(model, BERT.batch()), run(plain, BERT.batch())) == 0


def test_gates_come_and_go() -> None:
    model = gated()
    dense = run(model, BERT.batch())
    with_values(model)
    assert len(model.head_gates.values) == len(model.filter_gates.values) == 3
    assert difference(run(model, BERT.batch()), dense) > 0.1
    model.remove_head_gates()
    model.remove_filter_gates()
    assert model.head_gates is None
    assert model.filter_gates is None
    assert difference(run(model, BERT.batch()), dense) == 0


@pytest.mark.parametrize("model_class", [GatedBert, GatedDistilBert])
@pytest.mark.parametrize("with_gates", [True, False])
def test_saved_under_the_original_name_with_gates_folded_in(
    model_class: type, with_gates: bool, tmp_path: Path
) -> None:
    model = gated(model_class)
    model = with_values(model) if with_gates else model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = run(model, BERT.batch())
    model.save_pretrained(tmp_path)
    original = ORIGINAL[model_class]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [original.__name__]
    assert type(model) is model_class
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert difference(run(model, BERT.batch()), expected) == 0
    for loader in (AutoModelForSequenceClassification, original, model_class):
        loaded = loader.from_pretrained(tmp_path)
        assert difference(run(loaded, BERT.batch()), expected) <= (1e-5 if with_gates else 0)
    assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path)) is original
    assert model_class.from_pretrained(tmp_path).head_gates is None


def test_trains_gates_and_weights() -> None:
    model = gated().train()
    model.add_head_gates([torch.ones(HEADS, requires_grad=True) for _ in range(3)])
    values = model.head_gates.values
    optimizer = torch.optim.SGD([*model.parameters(), *values], lr=1e-2)
    model(**BERT.batch()).loss.backward()
    weight = model.bert.encoder.layer[0].attention.output.dense.weight
    before = weight.detach().clone()
    optimizer.step()
    assert all((value != 1).any() for value in values)
    assert not torch.equal(weight, before)


def test_trainer_writes_checkpoints_that_load_without_the_mixin(tmp_path: Path) -> None:
    rows = Dataset.from_dict({name: value.tolist() for name, value in BERT.batch(lengths=(9,) * 8).items()})
    model = with_values(gated())
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, save_steps=2, report_to=[], disable_tqdm=True, use_cpu=True
    )
    Trainer(model, arguments, train_dataset=rows).train()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert type(loaded) is BertForSequenceClassification
    assert difference(run(loaded, BERT.batch()), run(model.eval(), BERT.batch())) <= 1e-5


def test_state_dict_of_the_callers_choice_is_saved_as_it_is(tmp_path: Path) -> None:
    model = with_values(gated())
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    model.remove_head_gates()
    model.remove_filter_gates()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert difference(run(loaded, BERT.batch()), run(model, BERT.batch())) == 0


def test_gates_of_a_context_are_not_folded_in_after_it(tmp_path: Path) -> None:
    model = gated()
    dense = run(model, BERT.batch())
    with model.add_head_gates([torch.zeros(HEADS)] * 3):
        assert model.head_gates is not None
    assert model.head_gates is None
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert difference(run(loaded, BERT.batch()), dense) == 0


def test_head_gates_alone(tmp_path: Path) -> None:
    model = gated(HeadGatedBert)
    model.add_head_gates([torch.zeros(HEADS)] * 3)
    assert not hasattr(model, "add_filter_gates")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]


def test_pruned_checkpoints_load_into_mixins(tmp_path: Path) -> None:
    model = BERT.model()
    prune(model, BERT.batch())
    model.save_pretrained(tmp_path)
    loaded = GatedBert.from_pretrained(tmp_path)
    assert difference(run(loaded, BERT.batch()), run(model, BERT.batch())) == 0
    gates = loaded.add_head_gates()
    assert [len(value) for value in gates.values] == [2, 0, 4]
    loaded.remove_head_gates()
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert [block.units for block in describe_model(again).attentions] == [2, 0, 4]
