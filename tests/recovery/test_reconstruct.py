"""The streaming reconstruction, against the model itself with the same cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy import ModelAnatomy, linear_at
from hf_prune.calibration import CalibrationData
from hf_prune.gates import UnitGates
from hf_prune.recovery import (
    MaskTuner,
    ReconstructionProblem,
    Repair,
    reconstruct,
    refit_projection,
    refit_weights,
    solve_mask_scales,
)
from hf_prune.recovery.mask_tuning import unit_equations
from hf_prune.surgery import PruningPlan, apply_plan
from tests.conformance.plans import difference, run, varied_plan
from tests.small_models import Batch, Case, case

ONE_OF_EACH_LAYOUT = [case("bert", "masked"), case("distilbert", "masked"), case("bert", "cross_attention")]
MASKED = case("bert", "masked")

Solve = Callable[[ReconstructionProblem], Repair | None]


def batches(item: Case, number: int = 5) -> list[Batch]:
    return [
        {name: value.double() if value.is_floating_point() else value for name, value in item.batch(seed).items()}
        for seed in range(number)
    ]


def everything(anatomy: ModelAnatomy) -> PruningPlan:
    return PruningPlan({block.key: tuple(range(block.units)) for block in anatomy.blocks})


def repair(model: PreTrainedModel, plan: PruningPlan, data: list[Batch], solve: Solve) -> dict[str, Repair]:
    anatomy = describe_model(model)
    units = {block.key: plan.units(block) for block in anatomy.blocks}
    return reconstruct(model, anatomy, units, CalibrationData(data, model), data, solve)


class Recorder:
    """Keeps the problems that a solver is given."""

    def __init__(self, solve: Solve) -> None:
        self.solve = solve
        self.problems: dict[str, ReconstructionProblem] = {}

    def __call__(self, problem: ReconstructionProblem) -> Repair | None:
        # The projection is overwritten in place once the repair is known.
        kept = (problem.weight.clone(), None if problem.bias is None else problem.bias.clone())
        self.problems[problem.block.key] = replace(problem, weight=kept[0], bias=kept[1])
        return self.solve(problem)


def no_repair(problem: ReconstructionProblem) -> None:
    return None


@contextmanager
def watched(model: PreTrainedModel, anatomy: ModelAnatomy) -> Iterator[dict[str, list[tuple[torch.Tensor, ...]]]]:
    """Inputs and outputs of every block's output projection, and the residual stream behind it."""
    seen: dict[str, list[Any]] = {block.key: [] for block in anatomy.blocks}
    sums: dict[str, list[Any]] = {block.key: [] for block in anatomy.blocks}
    handles = []
    for block in anatomy.blocks:
        layer = model.get_submodule(block.layer)
        handles.append(
            linear_at(layer, block.output).register_forward_hook(
                lambda module, args, output, key=block.key: seen[key].append((args[0], output))
            )
        )
        assert block.residual.side == "input"
        norm = layer.get_submodule(block.residual.module)
        handles.append(norm.register_forward_pre_hook(lambda module, args, key=block.key: sums[key].append(args[0])))
    result: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    yield result
    for handle in handles:
        handle.remove()
    for key in seen:
        result[key] = [(*pair, total) for pair, total in zip(seen[key], sums[key], strict=True)]


def observe(model: PreTrainedModel, data: list[Batch]) -> dict[str, list[tuple[torch.Tensor, ...]]]:
    with watched(model, describe_model(model)) as seen:
        for batch in data:
            run(model, batch)
    return seen


@pytest.mark.parametrize("solve", [refit_weights, MaskTuner(), no_repair], ids=["refit", "tuning", "none"])
@pytest.mark.parametrize("item", ONE_OF_EACH_LAYOUT, ids=str)
def test_problems_are_those_of_the_model_itself(item: Case, solve: Solve) -> None:
    """Inputs come from the model as cut and repaired so far, targets from the dense one; padding counts for nothing."""
    model, data = item.model().double(), batches(item)
    anatomy = describe_model(model)
    plan = varied_plan(anatomy)
    recorder = Recorder(solve)
    repairs = repair(model, plan, data, recorder)
    dense = observe(model, data)
    apply_plan(model, anatomy, plan, repairs)
    pruned = observe(model, data)
    for block in anatomy.blocks:
        problem = recorder.problems[block.key]
        inputs, targets = [], []
        for batch, before, after in zip(data, dense[block.key], pruned[block.key], strict=True):
            valid = batch["attention_mask"].bool()
            inputs.append(after[0][valid])
            targets.append((before[2] - (after[2] - after[1]))[valid])
        h, b = torch.cat(inputs), torch.cat(targets)
        h = torch.cat([h, torch.ones(len(h), 1)], dim=1)
        found = problem.fit + problem.held_out
        assert found.tokens == len(h)
        assert torch.allclose(found.gram, h.T @ h, rtol=1e-7, atol=1e-7)
        assert torch.allclose(found.cross, h.T @ b, rtol=1e-7, atol=1e-6)
        assert found.target_square.item() == pytest.approx(b.square().sum().item())


def test_last_layer_counts_only_what_the_head_reads() -> None:
    for item, reads in ((case("bert", "classification"), 1), (case("distilbert", "classification"), 1)):
        model, data = item.model().double(), batches(item)
        recorder = Recorder(no_repair)
        anatomy = describe_model(model)
        repair(model, everything(anatomy), data, recorder)
        valid = sum(int(batch["attention_mask"].sum()) for batch in data)
        examples = sum(len(batch["input_ids"]) for batch in data)
        tokens = [int((problem.fit + problem.held_out).tokens) for problem in recorder.problems.values()]
        assert tokens[-1] == examples * reads
        assert tokens[:-2] == [valid] * (len(tokens) - 2)


@pytest.mark.parametrize("item", ONE_OF_EACH_LAYOUT, ids=str)
def test_without_a_cut_there_is_nothing_to_repair(item: Case) -> None:
    model, data = item.model().double(), batches(item)
    recorder = Recorder(refit_weights)
    repairs = repair(model, everything(describe_model(model)), data, recorder)
    for problem in recorder.problems.values():
        # The dense and the pruned stream are the same, so the old weights already give the target.
        both = problem.fit + problem.held_out
        assert abs(both.error(problem.weight, problem.bias)) <= 1e-9 * both.target_square
    for key, found in repairs.items():
        assert torch.allclose(found.weight, recorder.problems[key].weight, atol=1e-6)
        assert torch.allclose(found.bias, recorder.problems[key].bias, atol=1e-6)


@pytest.mark.parametrize("item", ONE_OF_EACH_LAYOUT, ids=str)
def test_refit_without_ridge_never_worse_than_mask_tuning(item: Case) -> None:
    compared = []

    def both(problem: ReconstructionProblem) -> Repair | None:
        sums = problem.fit + problem.held_out
        scales = solve_mask_scales(*unit_equations(sums, problem.weight, problem.bias, problem.columns), damp=0.0)
        refitted = refit_projection(sums, problem.weight, problem.bias, 0.0)
        tuned = problem.weight * scales[problem.columns]
        slack = 1e-9 * sums.target_square.item()
        compared.append((sums.error(*refitted), sums.error(tuned, problem.bias)))
        assert compared[-1][0] <= compared[-1][1] + slack
        assert compared[-1][1] <= sums.error(problem.weight, problem.bias) + slack
        return Repair(*refitted)

    model, data = item.model().double(), batches(item)
    plan = varied_plan(describe_model(model))
    repair(model, plan, data, both)
    assert len(compared) == len(describe_model(model).blocks)
    assert sum(one < 0.9 * other for one, other in compared) >= 2


def test_repairs_bring_the_outputs_back() -> None:
    # Filters that are sums of other filters can go without any loss, once the rest is repaired.
    model, data = MASKED.model().double(), batches(MASKED, 8)
    anatomy = describe_model(model)
    block = anatomy.feed_forwards[1]
    layer = model.get_submodule(block.layer)
    inner, outer = (linear_at(layer, projection) for projection in block.projections)
    with torch.no_grad():
        inner.weight[20:], inner.bias[20:] = inner.weight[:20].clone(), inner.bias[:20].clone()
        outer.weight[:, 20:] *= 0.5
    dense = run(model, data[0])
    plan = PruningPlan({block.key: tuple(range(20))})
    plain = copy.deepcopy(model)
    apply_plan(plain, anatomy, plan)
    apply_plan(model, anatomy, plan, repair(model, plan, data, refit_weights))
    assert difference(run(plain, data[0]), dense) > 0.5
    assert difference(run(model, data[0]), dense) < 1e-2


def test_padding_changes_nothing() -> None:
    data = batches(MASKED)
    garbage = [
        batch | {"input_ids": batch["input_ids"].where(batch["attention_mask"].bool(), torch.tensor(33))}
        for batch in data
    ]
    assert any(not torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(data, garbage, strict=True))
    model = MASKED.model().double()
    plan = varied_plan(describe_model(model))
    clean, dirty = (repair(model, plan, rows, refit_weights) for rows in (data, garbage))
    assert clean.keys() == dirty.keys()
    for key in clean:
        assert torch.allclose(clean[key].weight, dirty[key].weight, rtol=1e-8, atol=1e-10)


def test_labels_are_not_looked_at() -> None:
    model, data = MASKED.model(), [MASKED.batch(seed) for seed in range(5)]
    plan = varied_plan(describe_model(model))
    unlabelled = [{name: value for name, value in batch.items() if name != "labels"} for batch in data]
    with_labels, without = (repair(model, plan, rows, refit_weights) for rows in (data, unlabelled))
    assert all(torch.equal(with_labels[key].weight, without[key].weight) for key in with_labels)


def test_scales_folded_into_weights_equal_scaled_gates() -> None:
    item = case("bert", "classification")
    model, data = item.model(), [item.batch(seed) for seed in range(5)]
    anatomy = describe_model(model)
    plan = varied_plan(anatomy)
    recorder = Recorder(MaskTuner())
    repairs = repair(model, plan, data, recorder)
    gates = [mask.float() for mask in plan.masks(anatomy.blocks)]
    for gate, block in zip(gates, anatomy.blocks, strict=True):
        problem = recorder.problems[block.key]
        if block.key in repairs:
            sums = problem.fit + problem.held_out
            equations = unit_equations(sums, problem.weight, problem.bias, problem.columns)
            gate[gate != 0] = solve_mask_scales(*equations).float()
    with UnitGates(model, anatomy.blocks, gates):
        expected = run(model, data[0])
    apply_plan(model, anatomy, plan, repairs, data[0])
    assert len(repairs) >= 3
    assert difference(run(model, data[0]), expected) <= 1e-4


def test_model_is_left_alone() -> None:
    model, data = MASKED.model().train(), batches(MASKED)
    model.bert.embeddings.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    forwards = {name for name, module in model.named_modules() if "forward" in vars(module)}

    def interrupted(problem: ReconstructionProblem) -> None:
        raise KeyboardInterrupt

    plan = varied_plan(describe_model(model))
    repair(model, plan, data, refit_weights)
    with pytest.raises(KeyboardInterrupt):
        repair(model, plan, data, interrupted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert all(module.training for module in model.modules())
    assert {name for name, module in model.named_modules() if "forward" in vars(module)} == forwards
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_progress_names_every_block_in_order() -> None:
    model, data = MASKED.model(), [MASKED.batch()]
    anatomy = describe_model(model)
    units = {block.key: (0, 1) for block in anatomy.blocks}
    done: list[str] = []
    reconstruct(model, anatomy, units, CalibrationData(data, model), data, refit_weights, done.append)
    assert done == [block.key for block in anatomy.blocks]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, data = MASKED.model().to(dtype), [MASKED.batch(seed) for seed in range(4)]
    anatomy = describe_model(model)
    plan = varied_plan(anatomy)
    repairs = repair(model, plan, data, refit_weights)
    assert {found.weight.dtype for found in repairs.values()} == {dtype}
    apply_plan(model, anatomy, plan, repairs, data[0])
    assert all(output.isfinite().all() for output in run(model, data[0]))


def test_feed_forward_in_chunks() -> None:
    whole, chunked = MASKED.model(), MASKED.model(chunk_size_feed_forward=3)
    data = [MASKED.batch(seed) for seed in range(4)]
    plan = varied_plan(describe_model(whole))
    expected, found = (repair(model, plan, data, refit_weights) for model in (whole, chunked))
    assert found.keys() == expected.keys()
    for key in expected:
        assert torch.allclose(found[key].weight, expected[key].weight, atol=1e-3)
