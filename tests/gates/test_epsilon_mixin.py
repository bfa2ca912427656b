"""ε-gates on models as classes: they save what an ungated model saves."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from hf_prune import EpsilonGateMixin, HeadGateMixin
from tests.conformance.plans import difference, run
from tests.small_models import case, scale_weights

BERT = case("bert", "classification")


class GatedBert(EpsilonGateMixin, HeadGateMixin, BertForSequenceClassification):
    pass


def test_gates_come_and_go() -> None:
    model = GatedBert(BERT.config()).eval()
    scale_weights(model)
    dense = run(model, BERT.batch())
    assert model.epsilon_gates is None
    gates = model.add_epsilon_gates(1e9, kinds=["feed_forward"], reduction="example")
    assert model.epsilon_gates is gates
    assert {mapping.kind for mapping in gates.mappings} == {"feed_forward"}
    assert difference(run(model, BERT.batch()), dense) > 0.1
    model.remove_epsilon_gates()
    assert model.epsilon_gates is None
    assert difference(run(model, BERT.batch()), dense) == 0


def test_saved_under_the_original_name_without_gates(tmp_path: Path) -> None:
    model = GatedBert(BERT.config()).eval()
    scale_weights(model)
    dense = run(model, BERT.batch())
    model.add_epsilon_gates(1e9)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert difference(run(loaded, BERT.batch()), dense) == 0
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
