"""Shrinking is checked, leaves what it does not touch alone, and can be taken back."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import PruningError, describe_model
from hf_prune.anatomy import cut_together, linear_at
from hf_prune.recovery import Repair
from hf_prune.surgery import PruningPlan, apply_plan, shrink_model, verify
from tests.conformance.plans import difference, run, varied_plan, zeroed_copy
from tests.small_models import case

BERT = case("bert", "classification")


def hooks(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def assert_untouched(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert list(state) == list(before)
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert hooks(model) == 0
    assert all(block.units in (4, 40) for block in describe_model(model).blocks)


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_and_trainable_parameters_stay(training: bool) -> None:
    model = BERT.model().train(training)
    model.bert.embeddings.requires_grad_(False)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    anatomy = describe_model(model)
    apply_plan(model, anatomy, varied_plan(anatomy), batch=BERT.batch())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trainable
    assert all(module.training is training for module in model.modules())
    assert hooks(model) == 0


def test_repairs_are_installed_and_compared() -> None:
    model, batch = BERT.model(), BERT.batch()
    anatomy = describe_model(model)
    plan = varied_plan(anatomy)
    generator = torch.Generator().manual_seed(3)
    repairs, masked = {}, zeroed_copy(model, anatomy, plan)
    for block in (anatomy.attentions[0], anatomy.feed_forwards[0]):
        columns = plan.count(block) * block.output.width
        repair = Repair(torch.randn(32, columns, generator=generator), torch.randn(32, generator=generator))
        repairs[block.key] = repair
        projection = linear_at(masked.get_submodule(block.layer), block.output)
        kept = plan.masks([block])[0].repeat_interleave(block.output.width)
        with torch.no_grad():
            projection.weight[:, kept] = repair.weight
            projection.bias.copy_(repair.bias)
    expected = run(masked, batch)
    log = apply_plan(model, anatomy, plan, repairs, batch)
    assert difference(run(model, batch), expected) <= 1e-4
    for key, repair in repairs.items():
        projection = linear_at(model.get_submodule(anatomy[key].layer), anatomy[key].output)
        assert torch.equal(projection.weight, repair.weight)
        assert projection.weight.requires_grad
    log.roll_back()
    assert_untouched(model, BERT.model().state_dict())


def test_plan_is_checked_before_anything_is_touched() -> None:
    model = BERT.model()
    before = copy.deepcopy(model.state_dict())
    anatomy = describe_model(model)
    bad = PruningPlan({anatomy.blocks[0].key: (0,), anatomy.blocks[-1].key: (99,)})
    for act in (shrink_model, apply_plan):
        with pytest.raises(PruningError, match="must lie in 0 … 39"):
            act(model, anatomy, bad)
        assert_untouched(model, before)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("moment", ["_compare", "put_repair"])
def test_interruption_leaves_the_dense_model(
    failure: type[BaseException], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = BERT.model(), BERT.batch()
    before = copy.deepcopy(model.state_dict())
    anatomy = describe_model(model)
    plan = varied_plan(anatomy)
    block = anatomy.feed_forwards[0]
    repair = Repair(torch.zeros(32, plan.count(block)), torch.zeros(32))
    right = getattr(verify, moment)

    def fail(*arguments: object) -> None:
        right(*arguments)
        raise failure

    monkeypatch.setattr(verify, moment, fail)
    with pytest.raises(failure):
        apply_plan(model, anatomy, plan, {block.key: repair}, batch)
    assert_untouched(model, before)


def test_interruption_in_the_middle_of_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = BERT.model(), BERT.batch()
    before = copy.deepcopy(model.state_dict())
    anatomy = describe_model(model)
    right, calls = cut_together.cut_block, []

    def interrupted(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        right(*arguments)

    monkeypatch.setattr(cut_together, "cut_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply_plan(model, anatomy, varied_plan(anatomy), batch=batch)
    assert_untouched(model, before)


def test_outputs_that_are_not_finite_do_not_pass_as_equal() -> None:
    model = BERT.model()
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    anatomy = describe_model(model)
    with pytest.raises(PruningError, match="differ from the masked model's by nan"):
        apply_plan(model, anatomy, varied_plan(anatomy), batch=BERT.batch())
    assert describe_model(model) == anatomy


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_cut_and_compared(dtype: torch.dtype) -> None:
    model = BERT.model().to(dtype)
    anatomy = describe_model(model)
    apply_plan(model, anatomy, varied_plan(anatomy), batch=BERT.batch())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(output.isfinite().all() for output in run(model, BERT.batch()))


def test_pruned_model_can_be_copied() -> None:
    model, batch = BERT.model(), BERT.batch()
    anatomy = describe_model(model)
    apply_plan(model, anatomy, varied_plan(anatomy), batch=batch)
    twin = copy.deepcopy(model)
    assert difference(run(twin, batch), run(model, batch)) == 0
    with torch.no_grad():
        twin.bert.encoder.layer[1].attention.output.dense.bias.mul_(-3)
    # The copy's bypassed attention belongs to the copy.
    assert difference(run(twin, batch), run(model, batch)) > 1e-2
