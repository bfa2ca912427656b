from __future__ import annotations

import json

import pytest
import torch

from hf_prune import PruningError, describe_model
from hf_prune.anatomy import ModelAnatomy
from hf_prune.surgery import PruningPlan
from tests.conformance.plans import varied_plan
from tests.small_models import FILTERS, HEADS, case

ATTENTION, FILTER = "encoder.layer.0.attention", "encoder.layer.1.intermediate"


@pytest.fixture(scope="module")
def anatomy() -> ModelAnatomy:
    return describe_model(case("bert", "causal").model())


def test_masks_and_plan_say_the_same(anatomy: ModelAnatomy) -> None:
    plan = varied_plan(anatomy)
    masks = plan.masks(anatomy.blocks)
    assert [mask.dtype for mask in masks] == [torch.bool] * len(anatomy.blocks)
    assert PruningPlan.from_masks(anatomy.blocks, masks) == plan
    scaled = [mask * -0.5 for mask in masks]
    assert PruningPlan.from_masks(anatomy.blocks, scaled) == plan
    assert [int(mask.sum()) for mask in masks] == [plan.count(block) for block in anatomy.blocks]


def test_plan_survives_json(anatomy: ModelAnatomy) -> None:
    plan = varied_plan(anatomy)
    assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_removed_layers_keep_nothing_and_survive_json(anatomy: ModelAnatomy) -> None:
    plan = PruningPlan({FILTER: (1, 2), ATTENTION: (0,)}, ("encoder.layer.1",))
    plan.validate(anatomy)
    assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert PruningPlan.from_dict({"kept": {}}) == PruningPlan({})
    gone = {"encoder.layer.1.attention", FILTER}
    assert {block.key for block in anatomy.blocks if plan.removes(block)} == gone
    assert [block.key for block in plan.staying(anatomy)] == [b.key for b in anatomy.blocks if b.key not in gone]
    assert plan.changed(anatomy) == gone | {ATTENTION}
    assert plan.units(anatomy[FILTER]) == ()
    assert not plan.masks([anatomy[FILTER]])[0].any()


def test_a_removed_layer_needs_no_unit_that_the_cache_reads(anatomy: ModelAnatomy) -> None:
    assert anatomy[ATTENTION].minimum == 1
    PruningPlan({ATTENTION: ()}, ("encoder.layer.0",)).validate(anatomy)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (("encoder.layer.3",), r"names the layer 'encoder\.layer\.3', which the model lacks; the layers are encoder"),
        ((ATTENTION,), r"names the layer 'encoder\.layer\.0\.attention', which the model lacks"),
        (("encoder.layer.1", "encoder.layer.1"), "names a layer twice"),
        (("encoder.layer.0", "encoder.layer.1", "encoder.layer.2"), "every layer of bert.encoder.layer"),
    ],
)
def test_layers_that_cannot_be_removed(anatomy: ModelAnatomy, removed: tuple[str, ...], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        PruningPlan({}, removed).validate(anatomy)


def test_blocks_that_are_not_named_keep_everything(anatomy: ModelAnatomy) -> None:
    plan = PruningPlan({ATTENTION: (1,)})
    plan.validate(anatomy)
    assert plan.units(anatomy[ATTENTION]) == (1,)
    assert plan.units(anatomy[FILTER]) == tuple(range(FILTERS))
    assert plan.count(anatomy["encoder.layer.1.attention"]) == HEADS


def test_mask_that_does_not_fit_its_block(anatomy: ModelAnatomy) -> None:
    masks = [torch.ones(block.units) for block in anatomy.blocks]
    with pytest.raises(PruningError, match=r"encoder\.layer\.0\.attention: a mask of shape \(5,\) for 4 units"):
        PruningPlan.from_masks(anatomy.blocks, [torch.ones(5), *masks[1:]])


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"encoder.layer.7.attention": (0,)}, r"names 'encoder\.layer\.7\.attention', which the model lacks"),
        ({ATTENTION: (0, 4)}, r"must lie in 0 … 3, got \[0, 4\]"),
        ({ATTENTION: (-1, 2)}, "must lie in 0 … 3"),
        ({ATTENTION: (0.0, 1)}, "must lie in 0 … 3"),
        ({ATTENTION: ("1",)}, "must lie in 0 … 3"),
        ({ATTENTION: (2, 1)}, "ascending order without repeats"),
        ({FILTER: (3, 3)}, "ascending order without repeats"),
        ({ATTENTION: ()}, "at least 1 must stay"),
    ],
)
def test_plans_that_do_not_fit(anatomy: ModelAnatomy, kept: dict, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        PruningPlan(kept).validate(anatomy)
