"""From a budget in the user's words to masks: accounting, restrictions, and the latency budget's correction loop.

Latency runs on simulated hardware: seconds are a function of the widths, so results are exact and nothing is timed.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import FisherPruningConfig, InfeasibleBudgetError
from hf_prune.anatomy import ModelAnatomy, describe_model
from hf_prune.budget import (
    LatencyConditions,
    PlanSoFar,
    Selection,
    latency_selection,
    latency_table,
    latency_tables,
    search_units,
    select_units,
)
from hf_prune.budget.flops import flops_per_unit
from tests.small_models import case

LENGTH = 16


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return case("bert", "classification").model(intermediate_size=64)


@pytest.fixture(scope="module")
def anatomy(model: PreTrainedModel) -> ModelAnatomy:
    return describe_model(model)


@pytest.fixture(scope="module")
def scores(anatomy: ModelAnatomy) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {block.key: torch.rand(block.units, generator=generator) for block in anatomy.blocks}


ONE_PROCESS: Any = SimpleNamespace(is_main=True, broadcast=lambda value: value, agree=lambda action: action())


def choose(model: Any, anatomy: ModelAnatomy, scores: dict[str, torch.Tensor], **settings: Any) -> Selection:
    return select_units(model, anatomy, scores, FisherPruningConfig(**settings), ONE_PROCESS, LENGTH)


def share(selection: Selection, anatomy: ModelAnatomy, cost: Any) -> float:
    dense = sum(block.units * cost(block) for block in anatomy.blocks)
    return sum(int(selection.masks[block.key].sum()) * cost(block) for block in anatomy.blocks) / dense


COSTS = {
    "flops": lambda block: flops_per_unit(block, LENGTH),
    "params": lambda block: block.parameters_per_unit,
}


@pytest.mark.parametrize("keyword", ["flops", "params"])
@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5, 0.77, 1.0])
def test_the_budget_is_used_and_not_exceeded(model, anatomy, scores, keyword: str, fraction: float) -> None:
    selection = choose(model, anatomy, scores, **{keyword: fraction}, round_to=1)
    used = share(selection, anatomy, COSTS[keyword])
    assert used <= fraction
    assert used > fraction - 0.02  # no unit that still fits is left out, and a filter costs less than this


def test_blocks_that_are_not_targeted_stay_whole_and_count(model, anatomy, scores) -> None:
    selection = choose(model, anatomy, scores, flops=0.7, target_modules=["intermediate"])
    assert all(selection.masks[block.key].all() for block in anatomy.attentions)
    assert share(selection, anatomy, COSTS["flops"]) <= 0.7
    heads = sum(block.units * COSTS["flops"](block) for block in anatomy.attentions)
    fixed = heads / sum(block.units * COSTS["flops"](block) for block in anatomy.blocks)
    with pytest.raises(InfeasibleBudgetError, match="out of reach") as caught:
        choose(model, anatomy, scores, flops=fixed * 0.9, target_modules=["intermediate"])
    assert caught.value.smallest == pytest.approx(fixed)
    assert f"not to be pruned alone make up {fixed:.4f}" in str(caught.value)


@pytest.mark.parametrize("round_to", [1, 16])
@pytest.mark.parametrize("keyword", ["flops", "params"])
@pytest.mark.parametrize("targets", [None, ["attention"], ["intermediate"], ["layer.0.attention"]])
def test_the_smallest_value_can_be_reached_as_it_is_and_as_it_is_shown(
    model, anatomy, scores, keyword: str, targets: list[str] | None, round_to: int
) -> None:
    settings = {"target_modules": targets, "round_to": round_to}
    held = replace(anatomy, blocks=tuple(replace(block, minimum=3) for block in anatomy.blocks))
    with pytest.raises(InfeasibleBudgetError) as caught:
        choose(model, held, scores, **{keyword: 1e-3}, **settings)
    with pytest.raises(InfeasibleBudgetError):
        choose(model, held, scores, **{keyword: 0.9999 * caught.value.smallest}, **settings)
    found = re.search(r"reachable value is ([0-9.]+) ", str(caught.value))
    assert found is not None
    for value in (caught.value.smallest, float(found[1])):
        choose(model, held, scores, **{keyword: value}, **settings)
    assert float(found[1]) - caught.value.smallest < 1e-4


def test_round_to_and_uniform(model, anatomy, scores) -> None:
    rounded = choose(model, anatomy, scores, flops=0.5, round_to=16).masks
    for block in anatomy.blocks:
        assert int(rounded[block.key].sum()) * block.output.width % 16 == 0
    uniform = choose(model, anatomy, scores, flops=0.5, uniform=True).masks
    for blocks in (anatomy.attentions, anatomy.feed_forwards):
        assert len({int(uniform[block.key].sum()) for block in blocks}) == 1


def random_plan(anatomy: ModelAnatomy, masks: dict[str, torch.Tensor], seed: int) -> PlanSoFar:
    """Half of the blocks are decided."""
    order = torch.randperm(len(anatomy.blocks), generator=torch.Generator().manual_seed(seed)).tolist()
    return PlanSoFar(masks, {anatomy.blocks[index].key for index in order[: len(order) // 2]})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keyword", ["flops", "params"])
def test_what_is_decided_stays_and_the_rest_gets_what_is_left(model, anatomy, scores, keyword: str, seed: int) -> None:
    """The decided blocks are what other scores chose; of the rest the best within the remaining budget is kept."""
    generator = torch.Generator().manual_seed(seed)
    others = {key: torch.rand(len(values), generator=generator) for key, values in scores.items()}
    so_far = random_plan(anatomy, choose(model, anatomy, others, round_to=1, **{keyword: 0.5}).masks, seed)
    left = {key: values for key, values in scores.items() if key not in so_far.decided}
    config, cost = FisherPruningConfig(round_to=1, **{keyword: 0.5}), COSTS[keyword]
    found = select_units(model, anatomy, left, config, ONE_PROCESS, LENGTH, so_far)
    assert all(torch.equal(found.masks[key], so_far.masks[key]) for key in so_far.decided)
    spent = sum(int(so_far.masks[key].sum()) * cost(anatomy[key]) for key in so_far.decided)
    heads, filters = (
        [block for block in kind if block.key in left] for kind in (anatomy.attentions, anatomy.feed_forwards)
    )
    best = search_units(
        [scores[block.key] for block in heads],
        [scores[block.key] for block in filters],
        [cost(block) for block in heads],
        [cost(block) for block in filters],
        0.5 * sum(block.units * cost(block) for block in anatomy.blocks) - spent,
    )
    for block, mask in zip([*heads, *filters], [*best.head_masks, *best.filter_masks], strict=True):
        assert torch.equal(found.masks[block.key], mask)


def test_a_plan_that_uses_up_the_budget_stays(model, anatomy, scores) -> None:
    """Nothing is left for the other blocks, which keep nothing in the plan either: it is not out of reach."""
    first = anatomy.blocks[0]
    masks = {block.key: torch.zeros(block.units, dtype=torch.bool) for block in anatomy.blocks}
    masks[first.key][0] = True
    fraction = COSTS["params"](first) / sum(block.units * COSTS["params"](block) for block in anatomy.blocks)
    config = FisherPruningConfig(params=fraction, round_to=1)
    found = select_units(model, anatomy, scores, config, ONE_PROCESS, LENGTH, PlanSoFar(masks, {first.key}))
    assert all(torch.equal(found.masks[key], mask) for key, mask in masks.items())


class Hardware:
    """Seconds as a function of widths: a constant per sublayer, then steps; and what tables do not see."""

    def __init__(self, anatomy: ModelAnatomy, surcharge: float) -> None:
        self.anatomy = anatomy
        self.surcharge = surcharge
        self.measurements = 0

    @staticmethod
    def block(kind: str, units: int) -> float:
        if units == 0:
            return 0.0
        return 2.0 + (3.0 * units if kind == "attention" else 4.0 * math.ceil(units / 8))

    def layer(self, layer: torch.nn.Module) -> float:
        """The same for one layer as it is now; the rest of a layer costs one second."""
        first = self.anatomy.layers[0]
        total = 1.0
        for block in self.anatomy.blocks_of_layer(first):
            columns = layer.get_submodule(block.output.path).in_features
            total += self.block(block.kind, columns // block.output.width)
        return total

    def whole(self, model: torch.nn.Module) -> float:
        """End to end: embeddings and head, and a surcharge on everything that depends on the machine's mood."""
        return 5.0 + self.surcharge * sum(self.layer(model.get_submodule(layer)) for layer in self.anatomy.layers)


@pytest.fixture(params=[1.0, 0.7, 1.4], ids=lambda value: f"surcharge{value}")
def hardware(request, anatomy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hardware:
    machine = Hardware(anatomy, request.param)

    def time_layers(passes: list, *_: Any) -> list[float]:
        machine.measurements += 1
        return [machine.layer(item.layer) for item in passes]

    def compare(model: torch.nn.Module, log: Any, *_: Any, **__: Any) -> tuple[float, float]:
        cut = machine.whole(model)
        log.swap()
        dense = machine.whole(model)
        log.swap()
        return dense, cut

    monkeypatch.setattr(latency_table, "time_in_turn", time_layers)
    monkeypatch.setattr(latency_selection, "compare_with_undone", compare)
    monkeypatch.setenv("HF_PRUNE_CACHE", str(tmp_path))
    return machine


def seconds(machine: Hardware, selection: Selection) -> float:
    total = 0.0
    for block in machine.anatomy.blocks:
        total += machine.block(block.kind, int(selection.masks[block.key].sum()))
    return 5.0 + machine.surcharge * (total + len(machine.anatomy.layers))


@pytest.mark.parametrize("fraction", [0.9, 0.6, 0.4])
def test_a_latency_budget_holds_end_to_end(model, anatomy, scores, hardware: Hardware, fraction: float) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    selection = choose(model, anatomy, scores, latency=fraction)
    reached = seconds(hardware, selection) / hardware.whole(model)
    assert reached <= fraction
    assert reached > fraction - 0.15  # a step of this hardware is that coarse on three small layers
    assert not selection.notes or "×" not in selection.notes[-1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_latency_budget_holds_for_what_is_left(model, anatomy, scores, hardware: Hardware) -> None:
    generator = torch.Generator().manual_seed(2)
    others = {key: torch.rand(len(values), generator=generator) for key, values in scores.items()}
    so_far = random_plan(anatomy, choose(model, anatomy, others, latency=0.6).masks, 0)
    left = {key: values for key, values in scores.items() if key not in so_far.decided}
    found = select_units(model, anatomy, left, FisherPruningConfig(latency=0.6), ONE_PROCESS, LENGTH, so_far)
    assert all(torch.equal(found.masks[key], so_far.masks[key]) for key in so_far.decided)
    assert any(not torch.equal(found.masks[key], so_far.masks[key]) for key in left)
    assert 0.45 < seconds(hardware, found) / hardware.whole(model) <= 0.6


def test_a_latency_that_seems_out_of_reach_when_measured_anew(model, anatomy, scores, hardware: Hardware) -> None:
    so_far = random_plan(anatomy, choose(model, anatomy, scores, latency=0.4).masks, 1)
    left = {key: values for key, values in scores.items() if key not in so_far.decided}
    slower = FisherPruningConfig(latency=0.4 * 0.1)
    found = select_units(model, anatomy, left, slower, ONE_PROCESS, LENGTH, so_far)
    assert all(torch.equal(found.masks[key], mask) for key, mask in so_far.masks.items())


def test_absolute_latency(model, anatomy, scores, hardware: Hardware) -> None:
    target = 0.5 * hardware.whole(model)
    selection = choose(model, anatomy, scores, latency_ms=1000 * target)
    assert seconds(hardware, selection) <= target


def test_unreachable_latency_states_the_smallest(model, anatomy, scores, hardware: Hardware) -> None:
    empty = (5.0 + hardware.surcharge * len(anatomy.layers)) / hardware.whole(model)
    with pytest.raises(InfeasibleBudgetError) as caught:
        choose(model, anatomy, scores, latency=empty * 0.9)
    assert caught.value.smallest == pytest.approx(empty / latency_selection.LATENCY_AIM)
    choose(model, anatomy, scores, latency=caught.value.smallest * 1.05)  # what it says can be reached


def test_a_generous_latency_keeps_everything(model, anatomy, scores, hardware: Hardware) -> None:
    selection = choose(model, anatomy, scores, latency=1.0)
    assert all(mask.all() for mask in selection.masks.values())


def test_tables_are_measured_once_and_kept_on_disk(model, anatomy, hardware: Hardware, tmp_path: Path) -> None:
    conditions = LatencyConditions.of(model, 2, LENGTH)
    first = latency_tables(model, anatomy, conditions)
    assert hardware.measurements == 2  # one per kind of block: the layers are alike
    for block in anatomy.blocks:
        expected = [hardware.block(block.kind, units) for units in range(block.units + 1)]
        measured = first[block.key].tolist()
        assert measured[0] == 0.0
        assert measured[-1] == pytest.approx(expected[-1])
        if block.kind == "attention":
            assert measured == pytest.approx(expected)
    again = latency_tables(model, anatomy, conditions)
    assert hardware.measurements == 2
    assert all(torch.equal(again[key], table) for key, table in first.items())
    longer = LatencyConditions.of(model, 2, LENGTH + 1)
    latency_tables(model, anatomy, longer)
    assert hardware.measurements == 4


@pytest.mark.parametrize("damage", ["not json", '{"seconds": [0, 1]}', '{"seconds": [0, -1, 2, 3, 4]}', "{}", "[]"])
def test_a_damaged_table_is_measured_again(model, anatomy, hardware: Hardware, tmp_path: Path, damage: str) -> None:
    conditions = LatencyConditions.of(model, 2, LENGTH)
    first = latency_tables(model, anatomy, conditions)
    for file in tmp_path.rglob("*.json"):
        json.loads(file.read_text())
        file.write_text(damage)
    again = latency_tables(model, anatomy, conditions)
    assert hardware.measurements == 4
    assert all(torch.equal(again[key], table) for key, table in first.items())
