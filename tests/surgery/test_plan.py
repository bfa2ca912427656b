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
