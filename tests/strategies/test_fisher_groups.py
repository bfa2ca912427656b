"""Choosing group by group, against a loop over whole models that is written out, and where it has to matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_prune import FisherPruningConfig, InfeasibleBudgetError, PruningError, describe_model, prune_model, sweep
from hf_prune.anatomy import ModelAnatomy
from hf_prune.budget import (
    data_lengths,
    flops_per_unit,
    latency_selection,
    latency_table,
    search_units,
    total_flops,
    total_unit_parameters,
)
from hf_prune.calibration import CalibrationData
from hf_prune.recovery import reconstruct, refit_weights
from hf_prune.report.clock import StageClock
from hf_prune.scores import gradient_rows
from hf_prune.strategies.base import Cut
from hf_prune.strategies.fisher import iterative, prune_by_fisher
from hf_prune.strategies.fisher.unit_scores import BLENDS, FisherStatistics
from hf_prune.surgery import PruningPlan, apply_plan
from tests import mixtures
from tests.failing import Failing
from tests.small_models import Batch, case
from tests.task_models import TASK_MODELS
from tests.witness import Witness

ITEM = case("bert", "classification")
ORDERS = ("forward", "backward")


def config(**settings: Any) -> FisherPruningConfig:
    budget = {} if {"flops", "params", "latency"} & settings.keys() else {"flops": 0.4}
    return FisherPruningConfig(**budget, **{"round_to": 1, "iterative": True, "latency_batch_size": 2} | settings)


def seconds(module: torch.nn.Module) -> float:
    """What a pass takes on hardware that needs a second for each parameter."""
    return float(sum(parameter.numel() for parameter in module.parameters()))


def decided(model: PreTrainedModel, batches: list[Batch], settings: FisherPruningConfig) -> Cut:
    return prune_by_fisher(model, describe_model(model), settings, CalibrationData(batches, model), StageClock())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "settings",
    [
        {"importance": "fisher", "recovery": "mask_tuning"},
        {"importance": "after_refit", "labels": "model"},
        {"importance": "blended", "blend": 0.5},
    ],
    ids=lambda settings: settings["importance"],
)
def test_one_group_of_everything_is_the_choice_at_once(
    settings: dict[str, Any], order: str, batches: list[Batch]
) -> None:
    at_once = decided(ITEM.model(), batches, config(iterative=False, **settings))
    grouped = decided(ITEM.model(), batches, config(group_size=6, order=order, **settings))
    assert grouped.plan == at_once.plan
    assert grouped.notes == at_once.notes
    assert grouped.repairs.keys() == at_once.repairs.keys()
    for key, repair in at_once.repairs.items():
        assert torch.equal(grouped.repairs[key].weight, repair.weight)
        assert torch.equal(grouped.repairs[key].bias, repair.bias)


def written_out(
    model: PreTrainedModel, anatomy: ModelAnatomy, settings: FisherPruningConfig, data: CalibrationData
) -> PruningPlan:
    """Every score from whole passes over a model that is really cut, every budget from what is left of the FLOPs."""
    cost = {block.key: flops_per_unit(block, 8) for block in anatomy.blocks}
    units: dict[str, tuple[int, ...]] = {}
    left = list(anatomy.blocks)
    repairs: dict[str, Any] = {}
    while left:
        part = replace(anatomy, layers=tuple(dict.fromkeys(block.layer for block in left)), blocks=tuple(left))
        log = apply_plan(model, anatomy, PruningPlan(dict(units)), repairs)
        scores = FisherStatistics.collect(model, part, settings, data, 8).candidates[0]
        log.roll_back()
        spent = sum(len(kept) * cost[key] for key, kept in units.items())
        heads, filters = part.attentions, part.feed_forwards
        found = search_units(
            [scores[block.key] for block in heads],
            [scores[block.key] for block in filters],
            [cost[block.key] for block in heads],
            [cost[block.key] for block in filters],
            settings.flops * total_flops(anatomy, 8) - spent,
        )
        masks = {block.key: mask for block, mask in zip(heads, found.head_masks, strict=True)}
        masks |= {block.key: mask for block, mask in zip(filters, found.filter_masks, strict=True)}
        size = settings.group_size
        group = left[:size] if settings.order == "forward" else left[-size:]
        left = [block for block in left if block not in group]
        units |= {block.key: tuple(masks[block.key].nonzero().flatten().tolist()) for block in group}
        repairs = reconstruct(model, anatomy, units, data, data, refit_weights)
    return PruningPlan(units)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("importance", "size"), [("fisher", 1), ("after_refit", 2)])
def test_groups_are_those_of_the_loop_written_out(importance: str, size: int, order: str, batches: list[Batch]) -> None:
    model = ITEM.model().double()
    settings = config(importance=importance, group_size=size, order=order, refit_examples=None)
    anatomy, data = describe_model(model), CalibrationData(batches, model)
    witness = Witness(model)
    found = decided(model, batches, settings)
    witness.check()
    assert found.plan == written_out(model, anatomy, settings, data)
    assert found.plan != decided(model, batches, config(iterative=False, importance=importance)).plan
    at_once = {block.key: found.plan.units(block) for block in anatomy.blocks}
    repairs = reconstruct(model, anatomy, at_once, data, data, refit_weights)
    for key, repair in found.repairs.items():
        assert torch.allclose(repair.weight, repairs[key].weight, rtol=1e-6, atol=1e-9)


def writers_and_reader() -> PreTrainedModel:
    """Eight filters of the first layer write what nothing else writes, and one of the second reads nothing else.

    That is the difference of the first two hidden sizes, which is zero everywhere once the eight are gone.
    """
    model = ITEM.model().double()
    bert = model.bert
    with torch.no_grad():
        for table in bert.embeddings.children():
            if isinstance(table, torch.nn.Embedding):
                table.weight[:, :2] = 0
        outputs = [part for layer in bert.encoder.layer for part in (layer.attention.output, layer.output)]
        for norm in (bert.embeddings.LayerNorm, *(part.LayerNorm for part in outputs)):
            norm.weight[:2], norm.bias[:2] = 1, 0
        for part in outputs:
            part.dense.weight[:2], part.dense.bias[:2] = 0, 0
        for layer in bert.encoder.layer:
            own = layer.attention.self
            for readers in (own.query, own.key, own.value, layer.intermediate.dense, bert.pooler.dense):
                readers.weight[:, :2] = 0
        writing = bert.encoder.layer[0].output.dense.weight
        writing[:, :8] = 0
        writing[0, :8], writing[1, :8] = 0.2, -0.2
        reading = bert.encoder.layer[1]
        reading.intermediate.dense.weight[5], reading.intermediate.dense.bias[5] = 0, 0
        reading.intermediate.dense.weight[5, 0], reading.intermediate.dense.weight[5, 1] = 3, -3
        reading.output.dense.weight[2:, 5] *= 3
    return model


def test_what_only_reads_what_was_cut_goes_as_well(batches: list[Batch]) -> None:
    """Each of the eight matters little and their reader much; without the eight it makes no difference at all."""
    settings = {"flops": 0.8, "target_modules": ["intermediate"], "recovery": "mask_tuning", "rearrange": False}
    model = writers_and_reader()
    first, second, _ = describe_model(model).feed_forwards
    at_once = decided(model, batches, config(iterative=False, **settings)).plan
    grouped = decided(model, batches, config(group_size=1, **settings)).plan
    assert not set(range(8)) & {*at_once.units(first), *grouped.units(first)}
    assert 5 in at_once.units(second)
    assert 5 not in grouped.units(second)
    assert at_once.units(first) == grouped.units(first)


class TestBudgets:
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize(("keyword", "cost"), [("flops", None), ("params", total_unit_parameters)])
    def test_costs(self, keyword: str, cost: Any, order: str, batches: list[Batch]) -> None:
        model = ITEM.model()
        cost = cost or (lambda anatomy: total_flops(anatomy, 8))
        dense = cost(describe_model(model))
        prune_model(model, config(**{keyword: 0.4}, group_size=1, order=order), batches)
        assert 0.37 * dense < cost(describe_model(model)) <= 0.4 * dense

    def test_latency(self, batches: list[Batch], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def compare(model: Any, log: Any, *_: Any, **__: Any) -> tuple[float, float]:
            cut = seconds(model.base_model.encoder)
            log.swap()
            dense = seconds(model.base_model.encoder)
            log.swap()
            return dense, cut

        monkeypatch.setattr(latency_table, "time_in_turn", lambda passes, *_: [seconds(item.layer) for item in passes])
        monkeypatch.setattr(latency_selection, "compare_with_undone", compare)
        monkeypatch.setenv("HF_PRUNE_CACHE", str(tmp_path))
        model = ITEM.model(intermediate_size=256)
        dense = seconds(model.base_model.encoder)
        prune_model(model, config(latency=0.6, group_size=3, sequence_length=40), batches[:2])
        assert 0.5 * dense < seconds(model.base_model.encoder) <= 0.6 * dense

    def test_out_of_reach(self, batches: list[Batch]) -> None:
        model = ITEM.model()
        witness = Witness(model)
        with pytest.raises(InfeasibleBudgetError):
            prune_model(model, config(flops=0.3, exclude_modules=["intermediate"]), batches)
        witness.check()

    def test_sweep(self, rows: Dataset) -> None:
        settings = config(group_size=3, batch_size=8)
        found = sweep(ITEM.model(), settings, rows, (0.3, 0.6))
        for point in found.points:
            assert point.cut.plan == prune_model(ITEM.model(), point.config, rows).plan

    def test_metric_floor(self, rows: Dataset) -> None:
        settings = FisherPruningConfig(max_metric_drop=0.5, iterative=True, batch_size=4)
        result = prune_model(ITEM.model(), settings, rows, eval_dataset=rows)
        assert result.report.metrics["pruned"]["loss"] <= result.report.metrics["dense"]["loss"] + 0.5


class TestGroups:
    @pytest.mark.parametrize("order", ORDERS)
    def test_default_sizes(self, order: str, batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
        """Six sublayers in groups of two, or of three from behind; the first scores are those of the dense model."""
        measured: list[int] = []

        def collect(model: Any, anatomy: ModelAnatomy, *arguments: Any) -> FisherStatistics:
            measured.append(len(anatomy.blocks))
            return FisherStatistics.collect(model, anatomy, *arguments)

        monkeypatch.setattr(iterative, "FisherStatistics", type("Counted", (), {"collect": staticmethod(collect)}))
        decided(ITEM.model(), batches, config(order=order))
        assert measured == ([4, 2] if order == "forward" else [3])

    def test_what_is_not_to_be_pruned_is_in_no_group(self, batches: list[Batch]) -> None:
        model = ITEM.model()
        cut = decided(model, batches, config(flops=0.8, target_modules=["intermediate"], group_size=1))
        kept = [len(cut.plan.units(block)) for block in describe_model(model).blocks]
        assert kept[::2] == [4, 4, 4]
        assert sum(kept[1::2]) < 3 * 40

    def test_experts_of_a_layer_are_one(self) -> None:
        model, data = mixtures.mixture("mixtral"), [mixtures.batch(seed) for seed in range(3)]
        anatomy = describe_model(model)
        assert len(iterative.sublayers(anatomy.blocks)) == 4
        witness = Witness(model)
        cut = decided(model, data, config(importance="after_refit", group_size=1))
        witness.check()
        for layer in anatomy.layers:
            counts = {len(cut.plan.units(block)) for block in anatomy.blocks_of_layer(layer) if block.group}
            assert len(counts) == 1
        spent = sum(cut.plan.count(block) * flops_per_unit(block, cut.lengths) for block in anatomy.blocks)
        assert spent <= 0.4 * total_flops(anatomy, cut.lengths)

    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("name", ["bart", "t5", "albert"])
    def test_several_stacks_and_shared_layers(self, name: str, order: str) -> None:
        item = TASK_MODELS[name]
        model, data = item.model(), [item.example()]
        witness = Witness(model)
        cut = decided(model, data, config(importance="after_refit", labels="model", group_size=2, order=order))
        witness.check()
        anatomy = describe_model(model)
        lengths = data_lengths(model, anatomy, CalibrationData(data, model))
        spent = sum(cut.plan.count(block) * flops_per_unit(block, lengths) for block in anatomy.blocks)
        assert spent <= 0.4 * total_flops(anatomy, lengths)
        apply_plan(model, anatomy, cut.plan, cut.repairs, CalibrationData(data, model).first())

    def test_the_share_of_the_first_choice_serves_all_groups(self, batches: list[Batch]) -> None:
        plans = []
        for blend in (None, *BLENDS):
            settings = config(importance="blended", blend=blend, group_size=3)
            plans.append(decided(ITEM.model(), batches[:4], settings).plan)
        assert plans[0] in plans[1:]
        assert any(plan != plans[1] for plan in plans[2:])

    @pytest.mark.parametrize("order", ORDERS)
    def test_a_failure_in_the_middle_leaves_the_model(
        self, order: str, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = ITEM.model().train()
        witness = Witness(model)
        failing = Failing(gradient_rows.iterate_gradients, 1, KeyboardInterrupt)
        monkeypatch.setattr(gradient_rows, "iterate_gradients", failing)
        with pytest.raises(KeyboardInterrupt):
            prune_model(model, config(order=order, group_size=1), batches)
        assert failing.times == -1
        witness.check()


class TestSettings:
    @pytest.mark.parametrize("size", [0, -1, 1.5, True, "all"])
    def test_sizes(self, size: Any) -> None:
        with pytest.raises(PruningError, match=r"group_size=.* must be a whole number of at least 1"):
            config(group_size=size)

    def test_orders(self) -> None:
        with pytest.raises(PruningError, match="order='sideways' is unknown; use one of forward, backward"):
            config(order="sideways")

    def test_neither_true_nor_false(self) -> None:
        with pytest.raises(PruningError, match="iterative='yes' must be True or False"):
            config(iterative="yes")

    @pytest.mark.parametrize("settings", [{"group_size": 2}, {"order": "backward"}])
    def test_groups_of_nothing(self, settings: dict[str, Any]) -> None:
        [(name, value)] = settings.items()
        with pytest.raises(PruningError, match=f"{name}={value!r} says nothing without iterative=True"):
            config(iterative=False, **settings)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"recovery": "none"}, "repairs every group"),
            ({"importance": "magnitude"}, "would change nothing"),
            ({"uniform": True}, "nothing can be decided after the first group"),
        ],
    )
    def test_what_does_not_go_with_it(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(PruningError, match=words):
            config(**settings)
