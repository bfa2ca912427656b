"""A reconstruction that asks on its way which units stay, and shows the model as it is by then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import FisherPruningConfig, PruningError, describe_model
from hf_prune.anatomy import Block, ModelAnatomy
from hf_prune.calibration import Batch, CalibrationData
from hf_prune.recovery import Units, Walk, reconstruct, refit_weights
from hf_prune.recovery.resumed import START
from hf_prune.scores.gradients import some_examples
from hf_prune.strategies.fisher.unit_scores import FisherStatistics
from hf_prune.surgery import PruningPlan, apply_plan
from tests.conformance.plans import varied_plan
from tests.small_models import case
from tests.task_models import TASK_MODELS
from tests.witness import Witness

MASKED = case("bert", "masked")
# How many segments of each model's layers can be entered in the middle.
MODELS = {"bert": 1, "llama": 1, "vit": 1, "mixtral": 1, "bart": 2, "t5": 0, "albert": 0}


def model_and_batches(name: str) -> tuple[PreTrainedModel, list[Batch]]:
    if name == "bert":
        item = case("bert", "classification")
        model = item.model().double()
        return model, [item.batch(seed) for seed in range(2)]
    model, example = TASK_MODELS[name].model(), TASK_MODELS[name].example()
    return model, list(CalibrationData([some_examples(example, 0, 2), some_examples(example, 2, 3)], model))


def left_of(anatomy: ModelAnatomy, units: Units) -> ModelAnatomy:
    blocks = tuple(block for block in anatomy.blocks if block.key not in units)
    return replace(anatomy, layers=tuple(dict.fromkeys(block.layer for block in blocks)), blocks=blocks)


def together(anatomy: ModelAnatomy, block: Block) -> list[Block]:
    """The block, or all experts of its layer."""
    return [other for other in anatomy.blocks if (other.group or other.key) == (block.group or block.key)]


def scores(
    model: PreTrainedModel, anatomy: ModelAnatomy, batches: Sequence[Batch], data: CalibrationData
) -> Mapping[str, torch.Tensor]:
    config = FisherPruningConfig(flops=0.5, importance="after_refit", labels="data")
    return FisherStatistics.collect(model, anatomy, config, data, 8, batches).candidates[0]


@pytest.mark.parametrize("name", MODELS)
def test_scores_from_the_streams_are_those_of_full_passes(name: str) -> None:
    """At every block: of the model with all cuts and repairs so far, run whole on every batch."""
    model, batches = model_and_batches(name)
    anatomy, data = describe_model(model), CalibrationData(batches, model)
    plan, witness = varied_plan(anatomy), Witness(model)
    resuming: list[str] = []

    def choose(block: Block, walk: Walk) -> Units:
        left = left_of(anatomy, walk.units)
        log = apply_plan(model, anatomy, PruningPlan(dict(walk.units)), walk.repairs)
        with torch.enable_grad():
            expected = scores(model, left, batches, data)
        log.roll_back()
        with walk.cut_so_far() as held:
            found = scores(model, left, held, data)
        if START in held[0]:
            resuming.append(block.layer)
        assert found.keys() == expected.keys() == {other.key for other in left.blocks}
        for key, wanted in expected.items():
            assert torch.allclose(found[key], wanted, rtol=1e-4, atol=1e-6 * float(wanted.max())), key
        return {other.key: plan.units(other) for other in together(anatomy, block)}

    repairs = reconstruct(model, anatomy, choose, data, batches, refit_weights)
    witness.check()
    stacks = {layer.rpartition(".")[0] for layer in resuming}
    assert len(stacks) == MODELS[name]
    at_once = {block.key: plan.units(block) for block in anatomy.blocks}
    expected = reconstruct(model, anatomy, at_once, data, batches, refit_weights)
    assert repairs.keys() == expected.keys()
    for key, repair in repairs.items():
        assert torch.allclose(repair.weight, expected[key].weight, rtol=1e-6, atol=1e-9), key


def test_nothing_is_asked_twice() -> None:
    model, batches = MASKED.model(), [MASKED.batch(seed) for seed in range(2)]
    anatomy, data = describe_model(model), CalibrationData(batches, model)
    keys = [block.key for block in anatomy.blocks]
    asked: list[str] = []

    def pairs(block: Block, walk: Walk) -> Units:
        asked.append(block.key)
        place = keys.index(block.key)
        assert walk.passed == set(keys[:place])
        return dict.fromkeys(keys[place : place + 2], (0, 1))

    reconstruct(model, anatomy, pairs, data, batches, refit_weights)
    assert asked == keys[::2]


def test_blocks_that_are_not_named_stay_as_they_are() -> None:
    model, batches = MASKED.model().double(), [MASKED.batch(seed) for seed in range(5)]
    anatomy, data = describe_model(model), CalibrationData(batches, model)
    last = anatomy.blocks[-2:]
    few = {block.key: tuple(range(block.units // 2)) for block in last}
    everything = {block.key: tuple(range(block.units)) for block in anatomy.blocks}
    found = reconstruct(model, anatomy, few, data, batches, refit_weights)
    expected = reconstruct(model, anatomy, everything | few, data, batches, refit_weights)
    assert set(found) == {block.key for block in last}
    for key, repair in found.items():
        assert torch.allclose(repair.weight, expected[key].weight, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("inside", [True, False])
def test_a_failure_while_choosing_leaves_the_model(inside: bool) -> None:
    model, batches = MASKED.model().train(), [MASKED.batch(seed) for seed in range(2)]
    anatomy, data = describe_model(model), CalibrationData(batches, model)
    witness = Witness(model)

    def fail(block: Block, walk: Walk) -> Units:
        if block.layer != anatomy.layers[-1]:
            return {block.key: (0,)}
        with walk.cut_so_far() as held:
            assert START in held[0]
            if inside:
                raise PruningError("stop")
        raise PruningError("stop")

    with pytest.raises(PruningError, match="stop"):
        reconstruct(model, anatomy, fail, data, batches, refit_weights)
    witness.check()
