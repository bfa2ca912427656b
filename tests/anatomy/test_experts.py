"""Filters of experts and whole experts: read from parameters with an axis of experts, and cut out of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune import PruningError, count_flops, describe_model
from hf_prune.anatomy import ModelAnatomy, cut_experts
from hf_prune.budget import total_unit_parameters
from hf_prune.surgery import PruningPlan, apply_plan, shrink_model, write_metadata
from tests.conformance.plans import difference, run
from tests.mixtures import EXPERTS, FILTERS, HIDDEN, MIXTURES, PER_TOKEN, batch, experts_plan, filters_plan, mixture

TOLERANCE = 1e-4
VISIBLE = 0.1

types = pytest.mark.parametrize("model_type", MIXTURES)


def mixture_modules(model: PreTrainedModel) -> list[tuple[Any, Any]]:
    """The experts and the router of every layer that has some."""
    layers = [getattr(layer, "block_sparse_moe", None) or layer.mlp for layer in model.model.layers]
    mixtures = [layer for layer in layers if hasattr(layer, "experts")]
    return [(layer.experts, layer.gate if hasattr(layer, "gate") else layer.router) for layer in mixtures]


def prune(model: PreTrainedModel, anatomy: ModelAnatomy, plan: PruningPlan) -> None:
    apply_plan(model, anatomy, plan, batch=batch())
    write_metadata(model, anatomy, plan, {"strategy": "by hand"}, {}, {})


@types
class TestReading:
    def test_every_expert_is_a_block_of_filters(self, model_type: str) -> None:
        model = mixture(model_type)
        anatomy = describe_model(model)
        members = [block for block in anatomy.blocks if block.group is not None]
        assert len(members) == EXPERTS * len(anatomy.experts) == EXPERTS * len(mixture_modules(model))
        assert {block.units for block in members} == {FILTERS}
        assert members[1].key == f"{members[1].group}.1"
        assert {block.group for block in members} == {block.key for block in anatomy.experts}
        assert {(block.units, block.minimum) for block in anatomy.experts} == {(EXPERTS, PER_TOKEN)}

    def test_parameters_are_those_of_the_experts(self, model_type: str) -> None:
        model = mixture(model_type)
        anatomy = describe_model(model)
        whole = anatomy.with_whole_experts([block.key for block in anatomy.experts])
        expected = [p.numel() for experts, _ in mixture_modules(model) for p in experts.parameters()]
        router = [p.numel() for _, router in mixture_modules(model) for p in router.parameters()]
        rest = sum(block.units * block.parameters_per_unit for block in anatomy.blocks if block.group is None)
        assert total_unit_parameters(whole) - rest == sum(expected) + sum(router)
        # The bias of what an expert puts out belongs to no filter.
        biases = EXPERTS * HIDDEN * len(anatomy.experts) if model_type == "gpt_oss" else 0
        assert total_unit_parameters(anatomy) - rest == sum(expected) - biases

    def test_flops_are_those_of_the_chosen_experts(self, model_type: str) -> None:
        model = mixture(model_type)
        anatomy = describe_model(model)
        filters = [block for block in anatomy.blocks if block.group is not None]
        layers = len(anatomy.experts)
        assert sum(block.units * block.macs_per_unit(12) for block in filters) == (
            layers * 12 * PER_TOKEN * 3 * FILTERS * HIDDEN
        )
        before = count_flops(model, 12)
        shrink_model(model, *experts_plan(anatomy, 3))
        assert count_flops(model, 12) == pytest.approx(before, rel=1e-3)  # a filter's average cost is rounded


@types
@pytest.mark.parametrize("kept", [8, 5, 0])
def test_masked_filters_equal_cut_filters(model_type: str, kept: int) -> None:
    model = mixture(model_type)
    anatomy = describe_model(model)
    plan = filters_plan(anatomy, kept)
    masked = copy.deepcopy(model)
    for block in (block for block in anatomy.blocks if block.group is not None):
        down = masked.get_submodule(block.layer).get_parameter(block.output.path)
        removed = sorted(set(range(FILTERS)) - set(plan.units(block)))
        with torch.no_grad():
            # gpt_oss stores filters as rows
            down[block.output.expert][removed if model_type == "gpt_oss" else (slice(None), removed)] = 0
    expected, dense = run(masked, batch()), run(model, batch())
    assert difference(expected, dense) >= VISIBLE
    shrink_model(model, anatomy, plan)
    assert difference(run(model, batch()), expected) <= TOLERANCE
    for experts, _ in mixture_modules(model):
        assert experts.down_proj.shape[1 if model_type == "gpt_oss" else 2] == kept
    for implementation in ("eager", "batched_mm"):
        model.set_experts_implementation(implementation)
        assert difference(run(model, batch()), expected) <= TOLERANCE


def without_experts(model: PreTrainedModel, removed: list[list[int]]) -> None:
    """Routers that give the removed experts logits of minus infinity."""

    def route(router: Any, closed: list[int], hidden: torch.Tensor) -> Any:
        logits = F.linear(hidden.reshape(-1, HIDDEN), router.weight, getattr(router, "bias", None))
        logits[:, closed] = -torch.inf
        if type(router).__name__.startswith(("GptOss", "GraniteMoe")):  # they choose first
            chosen, places = logits.topk(PER_TOKEN)
            return logits, chosen.softmax(-1), places
        weights, places = logits.softmax(-1).topk(PER_TOKEN)
        if getattr(router, "norm_topk_prob", True):
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights, places

    for (_, router), closed in zip(mixture_modules(model), removed, strict=True):
        router.forward = lambda hidden, router=router, closed=closed: route(router, closed, hidden)


@types
def test_removed_experts_equal_logits_of_minus_infinity(model_type: str) -> None:
    model = mixture(model_type)
    anatomy, plan = experts_plan(describe_model(model), 3)
    masked = copy.deepcopy(model)
    kept = [plan.units(block) for block in anatomy.blocks if block.unit == "experts"]
    without_experts(masked, [[] for _ in kept])
    assert difference(run(masked, batch()), run(model, batch())) <= TOLERANCE  # the reference routes as the model does
    without_experts(masked, [sorted(set(range(EXPERTS)) - set(units)) for units in kept])
    expected = run(masked, batch())
    assert difference(expected, run(model, batch())) >= VISIBLE
    shrink_model(model, anatomy, plan)
    assert difference(run(model, batch()), expected) <= TOLERANCE
    for experts, router in mixture_modules(model):
        assert experts.num_experts == len(experts.down_proj) == len(router.weight) == 3


@types
def test_checkpoint_after_both_cuts_in_either_order(model_type: str, tmp_path: Path) -> None:
    for order in ("filters first", "experts first"):
        model = mixture(model_type)
        for step in range(2):
            anatomy = describe_model(model)
            if (step == 0) == (order == "filters first"):
                prune(model, anatomy, filters_plan(anatomy, 8))
            else:
                prune(model, *experts_plan(anatomy, 3))
        model.save_pretrained(tmp_path / order)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / order)
        assert difference(run(loaded, batch()), run(model, batch())) <= 1e-5
        entries = loaded.config.pruning["blocks"]
        name = anatomy.experts[0].key
        assert entries[name] == {"kept": 3, "of": EXPERTS}
        assert entries[f"{name}.*"] == {"kept": 8, "of": FILTERS}
        assert [block.units for block in describe_model(loaded).blocks] == [
            block.units for block in describe_model(model).blocks
        ]


@types
def test_generation_with_and_without_cache(model_type: str) -> None:
    model = mixture(model_type)
    prune(model, describe_model(model), filters_plan(describe_model(model), 5))
    prune(model, *experts_plan(describe_model(model), 3))
    ids = batch(lengths=(6, 6))["input_ids"]
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached, uncached = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, uncached)


@types
@pytest.mark.parametrize("units", ["filters", "experts"])
def test_wrong_rows_are_caught_and_rolled_back(model_type: str, units: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture(model_type)
    anatomy = describe_model(model)
    before = copy.deepcopy(model.state_dict())
    right = cut_experts._kept
    if units == "filters":
        plan = filters_plan(anatomy, 8)
        monkeypatch.setattr(cut_experts, "_kept", lambda *a: np.flip(right(*a)).copy() if a[2].axis == 0 else right(*a))
    else:
        anatomy, plan = experts_plan(anatomy, 3)
        keep = cut_experts.keep_slices
        monkeypatch.setattr(
            cut_experts,
            "keep_slices",
            lambda module, name, axis, kept, log: keep(
                module, name, axis, np.flip(kept).copy() if name == "weight" else kept, log
            ),
        )
    with pytest.raises(PruningError, match="rolled back"):
        apply_plan(model, anatomy, plan, batch=batch())
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert describe_model(model) == describe_model(mixture(model_type))


def test_experts_keep_equal_counts_of_filters() -> None:
    model = mixture("mixtral")
    anatomy = describe_model(model)
    plan = PruningPlan({**filters_plan(anatomy, 8).kept, anatomy.blocks[2].key: (0, 1, 2)})
    with pytest.raises(PruningError, match=r"layers\.0\.mlp\.experts: the experts keep 3, 8 filters"):
        apply_plan(model, anatomy, plan)


def test_fewer_experts_than_a_token_needs_are_refused() -> None:
    model = mixture("olmoe")
    with pytest.raises(PruningError, match=r"at least 2 must stay \(each token is sent to that many experts\)"):
        apply_plan(model, *experts_plan(describe_model(model), 1))


def test_widths_that_grouped_products_cannot_compute_run_one_by_one() -> None:
    model = mixture("mixtral")
    shrink_model(model, describe_model(model), filters_plan(describe_model(model), 6))
    experts, _ = mixture_modules(model)[0]
    assert experts.config._experts_implementation == "eager"
    assert model.config._experts_implementation == "grouped_mm"
    model.set_experts_implementation("batched_mm")
    assert experts.config._experts_implementation == "batched_mm"


def test_a_number_that_all_experts_share_is_no_part_of_any() -> None:
    model = mixture("mixtral")
    before = describe_model(model)
    for experts, _ in mixture_modules(model):
        experts.register_parameter("scale", torch.nn.Parameter(torch.tensor(2.0)))
    assert describe_model(model) == before


def test_routers_that_correct_their_choice_keep_all_experts() -> None:
    anatomy = describe_model(mixture("glm4_moe"))
    assert sum(block.group is not None for block in anatomy.blocks) == EXPERTS
    assert anatomy.experts == ()
