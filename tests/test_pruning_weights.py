"""Single weights at one go: `prune_model` with `sparsity`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_prune import (
    HoldPruningConfig,
    MagnitudePruningConfig,
    MovementPruningConfig,
    PruningConfig,
    PruningError,
    RandomPruningConfig,
    describe_model,
    prune_model,
)
from hf_prune.anatomy import choose_matrices
from hf_prune.gates import weight_masks_of
from hf_prune.scores import magnitude_scores
from hf_prune.surgery.mask_plan import MaskPlan
from tests.small_models import case

CASE = case("bert", "classification")
DEFAULT = MagnitudePruningConfig(sparsity=0.5)


def batches() -> list[dict[str, Any]]:
    return [CASE.batch(seed) for seed in range(3)]


def zeros(model: torch.nn.Module, config: PruningConfig = DEFAULT) -> dict[str, torch.Tensor]:
    return {matrix.name: matrix.parameter == 0 for matrix in choose_matrices(model, config.targets)}


def test_smallest_weights_of_every_matrix_go() -> None:
    model = CASE.model()
    dense = copy.deepcopy(model)
    result = prune_model(model, MagnitudePruningConfig(sparsity=0.6))
    assert isinstance(result.plan, MaskPlan)
    for name, gone in zeros(model).items():
        weights = dense.get_parameter(name).detach().abs().flatten()
        count = round(0.6 * weights.numel())
        assert set(gone.flatten().nonzero().flatten().tolist()) == set(weights.argsort()[:count].tolist())
        assert torch.equal(result.plan.masks[name], ~gone)
        kept = model.get_parameter(name)[~gone]
        assert torch.equal(kept, dense.get_parameter(name)[~gone])
    others = [name for name, _ in model.named_parameters() if name not in result.plan.masks]
    assert all(torch.equal(model.get_parameter(name), dense.get_parameter(name)) for name in others)
    assert not weight_masks_of(model)
    assert result.report.removed == sum(int(gone.sum()) for gone in zeros(model).values())


def test_global_scope_compares_all_matrices() -> None:
    model = CASE.model()
    dense = copy.deepcopy(model)
    prune_model(model, MagnitudePruningConfig(sparsity=0.6, scope="global"))
    gone = zeros(model)
    everything = torch.cat([dense.get_parameter(name).detach().abs().flatten() for name in gone])
    flags = torch.cat([mask.flatten() for mask in gone.values()])
    assert int(flags.sum()) == round(0.6 * len(everything))
    assert everything[flags].max() <= everything[~flags].min()
    assert len({round(float(mask.float().mean()), 2) for mask in gone.values()}) > 1


def test_pattern_leaves_two_of_four_inputs() -> None:
    model = CASE.model()
    prune_model(model, MagnitudePruningConfig(pattern="2:4"))
    for gone in zeros(model).values():
        assert bool((gone.unflatten(-1, (-1, 4)).sum(-1) == 2).all())


def test_random_masks_depend_on_the_seed_alone_and_are_nested() -> None:
    def gone(**settings: Any) -> dict[str, torch.Tensor]:
        model = CASE.model()
        prune_model(model, RandomPruningConfig(**settings))
        return zeros(model)

    half, again, other, more = gone(sparsity=0.5), gone(sparsity=0.5), gone(sparsity=0.5, seed=1), gone(sparsity=0.8)
    for name, mask in half.items():
        assert torch.equal(mask, again[name])
        assert not torch.equal(mask, other[name])
        assert int(mask.sum()) == round(0.5 * mask.numel())
        assert bool((more[name] | ~mask).all())


def test_movement_removes_what_a_step_would_move_to_zero() -> None:
    model = CASE.model()
    literal = copy.deepcopy(model)
    scores = {name: torch.zeros_like(literal.get_parameter(name)) for name in zeros(model)}
    for batch in batches():
        literal.zero_grad()
        literal(**batch).loss.backward()
        for name in scores:
            parameter = literal.get_parameter(name)
            scores[name] -= parameter.grad * parameter.detach()  # type: ignore[operator]
    result = prune_model(model, MovementPruningConfig(sparsity=0.5), batches())
    assert isinstance(result.plan, MaskPlan)
    assert len(result.plan.masks) == len(scores) - 2  # neither word embeddings nor pooler
    for name, mask in result.plan.masks.items():
        assert scores[name][mask].min() >= scores[name][~mask].max()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_units_by_magnitude_are_cut_out() -> None:
    model = CASE.model()
    anatomy = describe_model(model)
    scores = magnitude_scores(model, anatomy.blocks)
    result = prune_model(model, MagnitudePruningConfig(params=0.5, round_to=1))
    kept = result.plan.masks(anatomy.blocks)
    for kind in ("attention", "feed_forward"):
        rows = [
            (score, mask) for block, score, mask in zip(anatomy.blocks, scores, kept, strict=True) if block.kind == kind
        ]
        inside = torch.cat([score[mask] for score, mask in rows])
        outside = torch.cat([score[~mask] for score, mask in rows])
        assert not len(inside) or not len(outside) or inside.min() >= outside.max()
    assert result.report.pruned.unit_parameters <= 0.5 * result.report.dense.unit_parameters


def test_result_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    model = CASE.model()
    result = prune_model(model, MagnitudePruningConfig(sparsity=0.9))
    result.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    batch = CASE.batch()
    assert torch.equal(loaded.eval()(**batch).logits, model(**batch).logits)
    weights = loaded.config.pruning["weights"]
    assert weights["removed"] == result.report.removed
    assert loaded.config.pruning["strategy"]["sparsity"] == 0.9
    plan = MaskPlan.load(tmp_path)
    assert plan.masks.keys() == result.plan.masks.keys()
    assert all(torch.equal(plan.masks[name], mask) for name, mask in result.plan.masks.items())


def test_pruned_twice_with_units_first() -> None:
    model = CASE.model()
    prune_model(model, RandomPruningConfig(params=0.5, round_to=1))
    sizes = dict(model.config.pruning["blocks"])
    prune_model(model, MagnitudePruningConfig(sparsity=0.5))
    assert model.config.pruning["blocks"] == sizes
    zeroed = model.config.pruning["weights"]["removed"]
    prune_model(model, RandomPruningConfig(params=0.8, round_to=1, seed=3))
    counted = sum(int(mask.sum()) for mask in zeros(model).values())
    assert 0 < counted == model.config.pruning["weights"]["removed"] < zeroed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0 must lie in \[0, 1\)"),
        ({"sparsity": -0.1}, r"sparsity=-0.1 must lie in"),
        ({"sparsity": float("nan")}, "sparsity=nan must lie in"),
        ({"sparsity": True}, "sparsity=True must lie in"),
        ({"initial_sparsity": 1.5, "sparsity": 0.5}, "initial_sparsity=1.5"),
        ({"initial_sparsity": None, "sparsity": 0.5}, "initial_sparsity=None"),
        ({"sparsity": 0.5, "flops": 0.5}, "exactly one budget"),
        ({}, "exactly one budget"),
        ({"pattern": "4:2"}, "'N:M' with"),
        ({"pattern": "two"}, "'N:M' with"),
        ({"pattern": "2:4", "sparsity": 0.6}, "is a sparsity of 0.5"),
        ({"pattern": "2:4", "scope": "global"}, "scope must be 'matrix'"),
        ({"sparsity": 0.5, "scope": "layer"}, "scope='layer' is unknown"),
        ({"sparsity": 0.5, "after": "free"}, "after='free' is unknown"),
        ({"flops": 0.5, "after": "delete"}, "is for single weights"),
        ({"sparsity": 0.5, "begin": 0.8, "end": 0.2}, "must not be above end"),
        ({"sparsity": 0.5, "begin": -1}, "begin=-1 must be"),
        ({"sparsity": 0.5, "frequency": 0}, "frequency=0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        MagnitudePruningConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of sparsity and threshold"),
        ({"sparsity": 0.5, "threshold": 0.1}, "exactly one of sparsity and threshold"),
        ({"threshold": 1.0}, r"threshold=1.0 must lie in \(0, 1\)"),
        ({"sparsity": 0.5, "score_learning_rate": -1}, "score_learning_rate=-1"),
        ({"sparsity": 0.5, "regularization": float("inf")}, "regularization=inf"),
    ],
)
def test_movement_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        MovementPruningConfig(**settings)


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = CASE.model()
    dense = copy.deepcopy(model)

    def unmoved() -> bool:
        same = all(torch.equal(one, two) for one, two in zip(model.parameters(), dense.parameters(), strict=True))
        return same and not weight_masks_of(model) and not hasattr(model.config, "pruning")

    with pytest.raises(PruningError, match="matches nothing"):
        prune_model(model, MagnitudePruningConfig(sparsity=0.5, target_modules=["nothing"]))
    assert unmoved()
    with pytest.raises(PruningError, match="cannot divide into groups of 64"):
        prune_model(model, MagnitudePruningConfig(pattern="2:64"))
    assert unmoved()
    model.bert.requires_grad_(False)
    with pytest.raises(PruningError, match="is frozen"):
        prune_model(model, MovementPruningConfig(sparsity=0.5), batches())
    model.bert.requires_grad_(True)
    assert unmoved()

    def broken(predictions: Any) -> dict[str, float]:
        raise ValueError("broken")

    rows = [{key: value[0] for key, value in CASE.batch(lengths=(8,)).items()}]
    with pytest.raises(ValueError, match="broken"):
        prune_model(model, DEFAULT, eval_dataset=rows, compute_metrics=broken)
    assert unmoved()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(PruningError, match="not numbers"):
        prune_model(model, DEFAULT)
    assert not weight_masks_of(model)


def test_holding_works_only_in_training() -> None:
    model = CASE.model()
    prune_model(model, DEFAULT)
    with pytest.raises(PruningError, match="PruningCallback"):
        prune_model(model, HoldPruningConfig())


def test_movement_needs_labels() -> None:
    model = CASE.model()
    before = copy.deepcopy(model.state_dict())
    unlabelled = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches()]
    with pytest.raises(PruningError, match=r"returned no loss for the calibration batch .* labels are missing"):
        prune_model(model, MovementPruningConfig(sparsity=0.5), unlabelled)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
