"""What mappings cost, against models that have really lost them."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import InfeasibleBudgetError, PruningError, count_flops, describe_model
from hf_prune.budget import data_lengths
from hf_prune.calibration import CalibrationData
from hf_prune.gates import residual_mappings
from hf_prune.report.build import block_reports
from hf_prune.strategies.snip.config import UNITS
from hf_prune.strategies.snip.costs import check_goal, check_k, gate_costs, least_gates
from hf_prune.surgery import PruningPlan, apply_plan
from tests.family_models import main_head, sample
from tests.training.runs import bert

LENGTH = 9
EVERY_UNIT = pytest.mark.parametrize("units", ["heads", "feed_forward", "attention", "sublayers", "layers"])


def costs_of(model: PreTrainedModel, units: str, flops: bool) -> tuple[tuple, list[float]]:
    anatomy = describe_model(model)
    data = CalibrationData([sample(model)], model)
    plan = PruningPlan.from_masks(
        anatomy.blocks, [torch.ones(block.units, dtype=torch.bool) for block in anatomy.blocks]
    )
    rows = block_reports(anatomy, plan, data_lengths(model, anatomy, data, LENGTH))
    mappings = residual_mappings(anatomy, UNITS[units])
    return mappings, gate_costs(mappings, rows, flops=flops)


def without(model: PreTrainedModel, mapping: object, gate: int = 0) -> PreTrainedModel:
    """A copy of the model that has lost a mapping, or one of its heads."""
    pruned = copy.deepcopy(model)
    anatomy = describe_model(pruned)
    masks = []
    for block in anatomy.blocks:
        mask = torch.ones(block.units, dtype=torch.bool)
        if block.key in {other.key for other in mapping.blocks}:
            mask[gate if mapping.kind == "heads" else slice(None)] = False
        masks.append(mask)
    apply_plan(pruned, anatomy, PruningPlan.from_masks(anatomy.blocks, masks))
    return pruned


@EVERY_UNIT
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_costs_are_what_a_cut_removes(model_type: str, units: str) -> None:
    model = main_head(model_type).model()
    mappings, parameters = costs_of(model, units, flops=False)
    _, flops = costs_of(model, units, flops=True)
    dense = sum(block.parameters_per_unit * block.units for block in describe_model(model).blocks)
    total = count_flops(model, sequence_length=LENGTH)
    for mapping, share, working in zip(mappings, parameters, flops, strict=True):
        if mapping.gates <= least_gates(mapping):
            continue
        pruned = without(model, mapping)
        removed = model.num_parameters() - pruned.num_parameters()
        assert removed == round(share * dense), mapping.name
        assert total - count_flops(pruned, sequence_length=LENGTH) == pytest.approx(working * total)


@EVERY_UNIT
@pytest.mark.parametrize("flops", [True, False])
def test_all_that_is_there_costs_everything(units: str, flops: bool) -> None:
    mappings, costs = costs_of(bert(), units, flops)
    total = sum(mapping.gates * cost for mapping, cost in zip(mappings, costs, strict=True))
    assert total == pytest.approx(1.0) if units in ("sublayers", "layers") else 0 < total < 1


def test_what_must_stay_in_a_decoder() -> None:
    """Its first layer keeps a KV group, where the cache reads how long the text is."""
    model = main_head("llama").model()
    for units, expected in {
        "heads": [1, 0, 0],
        "attention": [1, 0, 0],
        "layers": [1, 0, 0],
        "feed_forward": [0] * 3,
    }.items():
        mappings, _ = costs_of(model, units, flops=False)
        assert [least_gates(mapping) for mapping in mappings] == expected


class TestGoals:
    def test_the_smallest_goal_is_accepted_and_a_smaller_one_is_not(self) -> None:
        """One head stays, and nothing else."""
        anatomy = describe_model(bert())
        dense = sum(block.parameters_per_unit * block.units for block in anatomy.blocks)
        least = anatomy.attentions[0].parameters_per_unit / dense
        mappings, costs = costs_of(bert(), "joint", flops=False)
        check_goal(mappings, costs, ("params", least))
        with pytest.raises(InfeasibleBudgetError, match=r"params=.* the smallest model keeps 0\.0") as caught:
            check_goal(mappings, costs, ("params", 0.99 * least))
        assert caught.value.smallest == pytest.approx(least)

    def test_what_has_no_gates_stays(self) -> None:
        mappings, costs = costs_of(bert(), "heads", flops=False)
        rest = 1 - sum(4 * cost for cost in costs)
        check_goal(mappings, costs, ("params", rest + costs[0]))
        with pytest.raises(InfeasibleBudgetError, match="or for other units"):
            check_goal(mappings, costs, ("params", rest + 0.5 * costs[0]))

    def test_what_must_stay_counts_once(self) -> None:
        mappings, costs = costs_of(main_head("llama").model(), "joint", flops=False)
        check_goal(mappings, costs, ("params", costs[0]))

    def test_without_a_goal_everything_is_fine(self) -> None:
        mappings, costs = costs_of(bert(), "heads", flops=False)
        check_goal(mappings, costs, None)


def test_k_beyond_what_there_is() -> None:
    mappings, _ = costs_of(bert(), "joint", flops=False)
    check_k(mappings, {"heads": 12, "feed_forward": 3})
    with pytest.raises(PruningError, match=r"k=4 for feed_forward: .* 3\. Choose k from 1 to 3"):
        check_k(mappings, {"heads": 12, "feed_forward": 4})
