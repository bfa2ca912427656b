"""Budgets on mixtures of experts: equal counts within a layer, never above what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_prune import FisherPruningConfig, PruningError, count_flops, describe_model, prune_model
from hf_prune.anatomy import groups_of
from hf_prune.budget import LatencyConditions, latency_table
from hf_prune.budget.search import search_units
from tests.conformance.plans import run
from tests.mixtures import MIXTURES, batch, mixture

DATA = [batch(seed) for seed in range(3)]


def config(**settings: object) -> FisherPruningConfig:
    return FisherPruningConfig(**{"latency_batch_size": 1, **settings})


@pytest.mark.parametrize("seed", range(8))
def test_search_with_groups_finds_the_best_of_all_choices(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    filters = [torch.rand(3, generator=generator) for _ in range(4)]
    heads = [torch.rand(2, generator=generator)]
    budget = 17
    result = search_units(heads, filters, 5, 2, budget, filter_groups=["a", "a", None, "b"])
    assert [int(mask.sum()) for mask in result.filter_masks[:2]] == [int(result.filter_masks[0].sum())] * 2
    assert result.cost <= budget

    def best(scores: torch.Tensor, count: int) -> float:
        return float(scores.double().sort(descending=True).values[:count].sum())

    totals = [
        best(heads[0], h) + best(filters[0], a) + best(filters[1], a) + best(filters[2], c) + best(filters[3], b)
        for h, a, c, b in product(range(3), range(4), range(4), range(4))
        if 5 * h + 2 * (2 * a + c + b) <= budget
    ]
    assert result.score_kept <= max(totals) + 1e-9
    assert result.score_kept + result.gap >= max(totals) - 1e-9


@pytest.mark.parametrize("model_type", MIXTURES)
@pytest.mark.parametrize("budget", [{"flops": 0.6}, {"params": 0.5}])
def test_filters_under_a_budget(model_type: str, budget: dict[str, float]) -> None:
    model = mixture(model_type)
    dense = describe_model(model)
    before = count_flops(model, 8)
    result = prune_model(model, config(**budget, round_to=1, sequence_length=8), DATA)
    report = result.report
    if "flops" in budget:
        assert report.pruned.flops <= 0.6 * report.dense.flops
        assert count_flops(model, 8) <= 0.6 * before * 1.001  # the same
    else:
        assert report.pruned.unit_parameters <= 0.5 * report.dense.unit_parameters
    for members in groups_of(dense.blocks):
        assert len({result.plan.count(member) for member in members}) == 1
        kept = [result.plan.units(member) for member in members if result.plan.count(member) < member.units]
        assert len(kept) in (0, len(members))
    some = [units for units in result.plan.kept.values() if len(units) > 0]
    assert len(set(some)) > 1
    assert all(value.isfinite().all() for value in run(model, DATA[0]))


@pytest.mark.parametrize("model_type", MIXTURES)
def test_whole_experts_where_they_are_named(model_type: str) -> None:
    model = mixture(model_type)
    before = count_flops(model, 8)
    attention = [block.units for block in describe_model(model).attentions]
    settings = {"params": 0.8, "target_modules": ["experts"], "sequence_length": 8}
    report = prune_model(model, config(**settings), DATA).report
    assert report.pruned.unit_parameters <= 0.8 * report.dense.unit_parameters
    assert report.pruned.flops == report.dense.flops
    assert count_flops(model, 8) == pytest.approx(before, rel=1e-3)  # a filter's average cost is rounded
    after = describe_model(model)
    assert [block.units for block in after.attentions] == attention
    assert min(block.units for block in after.experts) >= 2
    assert sum(block.units for block in after.experts) < 6 * len(after.experts)


def test_latency_is_measured_for_all_experts_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def time(passes: Sequence[Any], repeats: int, device: torch.device) -> list[float]:
        return [float(one.layer.mlp.experts.down_proj.numel()) for one in passes]

    monkeypatch.setenv("HF_PRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(latency_table, "time_in_turn", time)
    model = mixture("mixtral")
    anatomy = describe_model(model)
    tables = latency_table.latency_tables(model, anatomy, LatencyConditions.of(model, 1, 8))
    for members in groups_of(anatomy.blocks):
        for member in members:
            # Each of 6 experts costs what it has in the parameter: its filters, 32 entries each.
            assert tables[member.key].tolist() == pytest.approx([32 * width for width in range(25)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flops": 0.8, "target_modules": ["experts"]}, "whole experts cannot be chosen by flops"),
        ({"params": 0.8, "target_modules": ["experts.1"]}, "only 1 of 6 experts may be pruned"),
        ({"params": 0.8, "target_modules": ["moe"]}, "matches nothing"),
    ],
)
def test_what_cannot_be_asked_for(settings: dict, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        prune_model(mixture("mixtral"), config(**settings), DATA)


def test_experts_can_be_excluded_by_their_name() -> None:
    model = mixture("qwen2_moe")
    prune_model(model, config(flops=0.8, exclude_modules=["experts"], round_to=1), DATA)
    anatomy = describe_model(model)
    assert {block.units for block in anatomy.blocks if block.group is not None} == {24}
    assert sum(block.units for block in anatomy.blocks if block.group is None) < 2 * (2 + 20)


def test_whole_experts_of_routers_that_need_them_all() -> None:
    with pytest.raises(PruningError, match="Whole experts cannot be removed from"):
        prune_model(mixture("glm4_moe"), config(params=0.8, target_modules=["experts"]), DATA)
