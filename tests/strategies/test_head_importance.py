"""Pruning by head importance (Michel et al. 2019) against finite differences and against rounds done by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_prune import AutoPruningConfig, HeadImportancePruningConfig, PruningError, describe_model, prune_model
from hf_prune.calibration import CalibrationData
from hf_prune.gates import add_head_gates
from hf_prune.scores import head_importance
from hf_prune.strategies.head_importance.strategy import head_scores
from tests.conformance.plans import difference, run
from tests.family_models import main_head
from tests.scores.one_at_a_time import gradients_one_at_a_time, scaled, single_examples
from tests.small_models import HEADS, LAYERS, Batch, case
from tests.witness import Witness

BERT = case("bert", "classification")


def test_importance_by_hand() -> None:
    totals = [torch.tensor([6.0, 8.0]), torch.tensor([0.0, 0.0, 2.0]), torch.zeros(2)]
    assert [score.tolist() for score in head_importance(totals, 2)] == [[0.6, 0.8], [0, 0, 1], [0, 0]]
    assert [score.tolist() for score in head_importance(totals, 2, normalize=False)] == [[3, 4], [0, 0, 1], [0, 0]]


def test_importance_against_finite_differences(batches: list[Batch]) -> None:
    """Mean over examples of |∂L/∂gate|, each layer's vector of length one."""
    model, batches = BERT.model().double(), batches[:2]
    slopes = []
    for example in (example for batch in batches for example in single_examples(batch)):
        row = torch.zeros(LAYERS, HEADS, dtype=torch.float64)
        for layer in range(LAYERS):
            for head in range(HEADS):
                losses = []
                for step in (1e-5, -1e-5):
                    gates = torch.ones(LAYERS, HEADS, dtype=torch.float64)
                    gates[layer, head] += step
                    with torch.no_grad(), add_head_gates(model, list(gates)):
                        losses.append(model(**example).loss)
                row[layer, head] = (losses[0] - losses[1]) / 2e-5
        slopes.append(row)
    mean = torch.stack(slopes).abs().mean(0)
    for normalize, expected in ((False, mean), (True, mean / mean.norm(dim=1, keepdim=True))):
        found = scores_of(model, batches, normalize=normalize)
        assert torch.allclose(torch.stack(found), expected, rtol=1e-4)


def scores_of(model: Any, batches: list[Batch], off: dict[str, list[int]] | None = None, **settings: Any) -> Any:
    anatomy = describe_model(model)
    masks = {block.key: torch.ones(block.units, dtype=torch.bool) for block in anatomy.attentions}
    for key, heads in (off or {}).items():
        masks[key][heads] = False
    found = head_scores(model, anatomy, CalibrationData(batches, model), masks, **settings)
    return [found[block.key] for block in anatomy.attentions]


def test_the_examples_of_a_batch_do_not_cancel_out(batches: list[Batch]) -> None:
    model = BERT.model().double()
    one_by_one = [example for batch in batches for example in single_examples(batch)]
    for together, alone in zip(scores_of(model, batches), scores_of(model, one_by_one), strict=True):
        assert torch.allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rounds_score_what_is_left(batches: list[Batch], scope: str) -> None:
    """Three rounds of 12 → 9 → 6 → 3 heads, done by hand: gates off, gradients of the others, the lowest go."""
    model = BERT.model().double()
    blocks = describe_model(model).attentions
    config = HeadImportancePruningConfig(heads=0.25, iterations=3, scope=scope)
    masks = torch.ones(LAYERS, HEADS, dtype=torch.bool)
    for kept in (9, 6, 3):
        totals = torch.zeros(LAYERS, HEADS, dtype=torch.float64)
        with scaled(model, list(masks.double()), blocks):
            for batch in batches:
                totals += torch.stack(gradients_one_at_a_time(model, batch, blocks)).abs().sum(1)
        scores = (totals / totals.norm(dim=1, keepdim=True)).masked_fill(~masks, -1)
        if scope == "layer":
            order = scores.argsort(dim=1, descending=True)[:, : kept // LAYERS]
            masks = torch.zeros_like(masks).scatter_(1, order, True)
        else:
            scores[torch.arange(LAYERS), scores.argmax(1)] = torch.inf
            masks = scores >= scores.flatten().sort(descending=True).values[kept - 1]
    plan = prune_model(model, config, batches).plan
    assert [plan.kept[block.key] for block in blocks] == [tuple(row.nonzero().flatten().tolist()) for row in masks]


def test_rounds_and_one_go_may_differ_but_not_in_number(batches: list[Batch]) -> None:
    plans = [
        prune_model(BERT.model(seed=3), HeadImportancePruningConfig(heads=0.5, iterations=rounds), batches).plan
        for rounds in (1, 6)
    ]
    counts = [sum(len(units) for key, units in plan.kept.items() if key.endswith("attention")) for plan in plans]
    assert counts == [6, 6]
    assert plans[0] != plans[1]


def test_a_head_that_is_off_scores_below_all_others(batches: list[Batch]) -> None:
    off = {"encoder.layer.1.attention": [2], "encoder.layer.2.attention": [0, 1, 2, 3]}
    scores = scores_of(BERT.model(), batches, off)
    assert scores[1][2] == -1
    assert scores[2].tolist() == [-1] * HEADS
    assert all(float(score) >= 0 for place, score in enumerate(scores[1].tolist()) if place != 2)


def test_a_pruned_model_is_smaller_and_loads(batches: list[Batch], tmp_path: Path) -> None:
    model = BERT.model()
    result = prune_model(model, HeadImportancePruningConfig(heads=0.5), batches)
    blocks = describe_model(model)
    assert sum(block.units for block in blocks.attentions) == 6
    assert min(block.units for block in blocks.attentions) >= 1
    assert [block.units for block in blocks.feed_forwards] == [40, 40, 40]
    result.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert difference(run(loaded, batches[0]), run(model, batches[0])) == 0
    assert AutoPruningConfig.from_pretrained(tmp_path) == HeadImportancePruningConfig(heads=0.5)


def test_groups_of_heads_go_together() -> None:
    """Where heads share keys and values, the unit is the group."""
    model = main_head("llama").model(num_attention_heads=8, num_key_value_heads=4)
    ids = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    prune_model(model, HeadImportancePruningConfig(heads=0.5, scope="layer"), [{"input_ids": ids, "labels": ids}])
    assert [(block.units, block.heads_per_unit) for block in describe_model(model).attentions] == [(2, 2)] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "HeadImportancePruningConfig needs heads="),
        ({"heads": 0.0}, r"heads=0\.0 must lie in \(0, 1\]"),
        ({"heads": 1.2}, r"heads=1\.2 must lie in \(0, 1\]"),
        ({"heads": float("nan")}, "heads=nan must lie in"),
        ({"heads": True}, "heads=True must lie in"),
        ({"heads": 0.5, "scope": "matrix"}, "scope='matrix' is unknown; use one of global, layer"),
        ({"heads": 0.5, "iterations": 0}, "iterations=0 must be a whole number of at least 1"),
        ({"heads": 0.5, "iterations": None}, "iterations=None must be a whole number of at least 1"),
        ({"heads": 0.5, "normalize": 1}, "normalize=1 must be True or False"),
        ({"heads": 0.5, "allow_empty_layers": "no"}, "allow_empty_layers='no' must be True or False"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        HeadImportancePruningConfig(**settings)


@pytest.mark.parametrize("data", ["no data", "no labels"])
def test_bad_data_touches_nothing(batches: list[Batch], data: str) -> None:
    model = BERT.model().train()
    witness = Witness(model)
    unlabelled = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    message = "Calibration data is needed" if data == "no data" else "labels are missing"
    with pytest.raises(PruningError, match=message):
        prune_model(model, HeadImportancePruningConfig(heads=0.5), None if data == "no data" else unlabelled)
    witness.check()
