"""Sublayers that are not computed while every unit of them is off."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy import Block, UndoLog
from hf_prune.anatomy.skip import can_skip, skip_sublayer
from hf_prune.surgery import PruningPlan, apply_plan
from tests.conformance.plans import TOLERANCE, VISIBLE, difference, run, zeroed_copy
from tests.family_models import main_head, sample
from tests.gates.test_unit_gates import footprint
from tests.training.runs import BERT, bert

# Post-LN and pre-norm, Conv1D, GLUs fused and not, biases added in one place, an encoder with a decoder, images, sound.
FAMILIES = ("bart", "bert", "bloom", "distilbert", "gpt2", "llama", "opt", "phi3", "t5", "vit", "wav2vec2")


def emptied(model: PreTrainedModel) -> tuple[list[Block], PruningPlan]:
    """Every other sublayer that can go as a whole, and the plan without them."""
    anatomy = describe_model(model)
    free = [block for block in anatomy.blocks if not block.minimum][1::2]
    kept = {block.key: () if block in free else tuple(range(block.units)) for block in anatomy.blocks}
    return free, PruningPlan(kept)


def skip(model: PreTrainedModel, blocks: list[Block]) -> UndoLog:
    log = UndoLog()
    for block in blocks:
        assert can_skip(block)
        skip_sublayer(model.get_submodule(block.layer), block, log)
    return log


def flops_of(model: PreTrainedModel, act: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_gives_what_zeros_give_at_the_cost_of_the_cut_model(model_type: str) -> None:
    dense = main_head(model_type).model().requires_grad_(False)  # the counter stumbles over leaves
    batch, (blocks, plan) = sample(dense), emptied(dense)
    model = zeroed_copy(dense, describe_model(dense), plan)
    before, masked = footprint(model), run(model, batch)
    assert difference(masked, run(dense, batch)) >= VISIBLE
    log = skip(model, blocks)
    assert difference(run(model, batch), masked) <= 0.01 * TOLERANCE

    cut = copy.deepcopy(dense)
    apply_plan(cut, describe_model(cut), plan)
    counts = [flops_of(item, lambda item=item: run(item, batch)) for item in (dense, model, cut)]
    assert counts[0] > counts[1] == counts[2]

    log.roll_back()
    assert footprint(model) == before
    assert difference(run(model, batch), masked) == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_gradient_checkpointing(reentrant: bool) -> None:
    """The gradients are those of zeros; what is skipped has none."""
    dense = bert()
    blocks, plan = emptied(dense)
    masked = zeroed_copy(dense, describe_model(dense), plan).train()
    skipped = copy.deepcopy(masked)
    skip(skipped, blocks)
    skipped.gradient_checkpointing_enable({"use_reentrant": reentrant})
    skipped.enable_input_require_grads()
    for model in (masked, skipped):
        model(**BERT.batch()).loss.backward()
    paths = {f"{block.layer}.{part.path}.weight" for block in blocks for part in block.projections}
    for (name, parameter), other in zip(skipped.named_parameters(), masked.parameters(), strict=True):
        if name in paths:
            assert parameter.grad is None or not parameter.grad.any(), name
        elif parameter.grad is not None:
            assert torch.allclose(parameter.grad, other.grad, atol=1e-6), name
        else:
            assert other.grad is None or not other.grad.any(), name


def test_experts_cannot_be_skipped() -> None:
    blocks = describe_model(main_head("mixtral").model()).blocks
    assert [can_skip(block) for block in blocks[:2]] == [True, False]
