"""Every model type in the table, and the layouts that its config can ask for, beyond cutting and loading.

Gates pass gradients, wrong cuts are caught, the cut model trains and can be pruned and saved once more.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_prune import PruningError, describe_model
from hf_prune.anatomy import Block, cut_forward, supported_model_types
from hf_prune.gates import UnitGates
from hf_prune.surgery import apply_plan, shrink_model
from tests.conformance.plans import (
    TOLERANCE,
    assert_counted_in_dense_model,
    difference,
    prune,
    run,
    varied_plan,
    zeroed_copy,
)
from tests.conformance.training import loss_of, train_one_step
from tests.conformance.wrong_cuts import cut_in_reverse, cut_others, cut_table_in_reverse
from tests.family_models import EVERY_HEAD, VARIANTS, Head, labels, main_head, sample

CASES = [*(main_head(model_type) for model_type in supported_model_types()), *VARIANTS]


# Half of ConvBERT's heads are convolutions over all of them.
WITHOUT_HEADS = {"convbert"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layer_has_heads_and_filters(case: Head) -> None:
    anatomy = describe_model(case.model())
    for layer in anatomy.layers:
        kinds = {block.kind for block in anatomy.blocks_of_layer(layer)}
        assert kinds == ({"feed_forward"} if case.model_type in WITHOUT_HEADS else {"attention", "feed_forward"})
    assert all(block.units > 0 and block.parameters_per_unit > 0 for block in anatomy.blocks)
    assert len({block.key for block in anatomy.blocks}) == len(anatomy.blocks)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gates_take_gradients(case: Head) -> None:
    model = case.model()
    batch = sample(model)
    blocks = describe_model(model).blocks
    gates = [torch.ones(block.units, requires_grad=True) for block in blocks]
    with UnitGates(model, blocks, gates):
        loss_of(model(**batch, **labels(model, batch))).backward()
    for block, gate in zip(blocks, gates, strict=True):
        assert gate.grad is not None, block.key
        assert gate.grad.isfinite().all(), block.key
        # Scaling a whole sublayer before a norm changes nothing, and to an expert perhaps no token went.
        assert block.unit == "sublayer" or block.group or gate.grad.abs().max() > 1e-6, block.key


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_wrong_projection_is_caught(case: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    model = case.model()
    batch = sample(model)
    anatomy = describe_model(model)
    plan = varied_plan(anatomy)
    before = copy.deepcopy(model.state_dict())
    for block in _one_of_each_kind(anatomy.blocks, plan.changed(anatomy)):
        units = plan.units(block)
        wrong = cut_in_reverse if len(units) > 1 else cut_others
        for projection in (item for item in block.projections if item.parts):
            with monkeypatch.context() as patch:
                wrong(patch, projection.path)
                with pytest.raises(PruningError, match="rolled back"):
                    apply_plan(model, anatomy, plan, batch=batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(model.state_dict()) == list(before)
    apply_plan(model, anatomy, plan, batch=batch)


TABLES = {
    "t5": "layer.0.SelfAttention.relative_attention_bias.weight",
    "umt5": "layer.0.SelfAttention.relative_attention_bias.weight",
    "gpt_oss": "self_attn.sinks",
    "cohere, norms per head": "self_attn.q_norm.weight",
    "stablelm, norms per head": "self_attn.q_layernorm.norms",
}


@pytest.mark.parametrize("name", TABLES)
def test_wrong_order_of_what_every_head_has_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(item for item in CASES if name == (item.name or item.model_type))
    model = case.model()
    batch = sample(model)
    anatomy = describe_model(model)
    cut_table_in_reverse(monkeypatch, TABLES[name])
    with pytest.raises(PruningError, match="rolled back"):
        apply_plan(model, anatomy, varied_plan(anatomy), batch=batch)


@pytest.mark.parametrize("name", ["beit", "beit, shared position bias", "bloom", "falcon, ALiBi", "mpnet", "mpt"])
def test_wrong_order_of_given_position_biases_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(item for item in CASES if name == (item.name or item.model_type))
    model = case.model()
    batch = sample(model)
    anatomy = describe_model(model)
    right = cut_forward._kept_heads

    def in_reverse(core: Any, value: Any, axis: Any) -> Any:
        dense = core.heads_before_pruning
        return right(SimpleNamespace(kept_heads=core.kept_heads[::-1], heads_before_pruning=dense), value, axis)

    monkeypatch.setattr(cut_forward, "_kept_heads", in_reverse)
    with pytest.raises(PruningError, match="rolled back"):
        apply_plan(model, anatomy, varied_plan(anatomy), batch=batch)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_attention_backend(case: Head) -> None:
    """Eager attention adds masks and biases in modelling code that the default backend does not run."""
    model = case.model("eager")
    batch = sample(model)
    anatomy = describe_model(model)
    plan = varied_plan(anatomy, seed=2)
    masked = run(zeroed_copy(model, anatomy, plan), batch)
    shrink_model(model, anatomy, plan)
    assert difference(run(model, batch), masked) <= TOLERANCE
    copied = copy.deepcopy(model)
    del model
    assert difference(run(copied, batch), masked) <= TOLERANCE


def _one_of_each_kind(blocks: tuple[Block, ...], changed: set[str]) -> list[Block]:
    """The first block of each layout that loses some units, but not all; experts have tests of their own."""
    found: dict[str, Block] = {}
    for block in blocks:
        if block.key in changed and block.units > 1 and block.group is None and block.key.count(".0."):
            found.setdefault(block.layout.name, block)
    return list(found.values())


# Without an encoder its cross-attention has nothing to learn from; the whole Whisper is among the heads, too.
TRAINED = [head for head in (*EVERY_HEAD, *VARIANTS) if head.model_class.__name__ != "WhisperForCausalLM"]


@pytest.mark.parametrize("case", TRAINED, ids=str)
def test_trains_and_can_be_pruned_again(case: Head, tmp_path: Path) -> None:
    model = case.model()
    batch = sample(model)
    heads = {block.key: block.units for block in describe_model(model).attentions}
    plan = prune(model, batch)
    shapes = [parameter.shape for parameter in model.parameters()]
    train_one_step(model, {**batch, **labels(model, batch)})
    assert [parameter.shape for parameter in model.parameters()] == shapes

    anatomy = describe_model(model)
    again = prune(model, batch, seed=1)
    model.save_pretrained(tmp_path)
    loaded = case.auto_class.from_pretrained(tmp_path)
    assert difference(run(copy.deepcopy(loaded), batch), run(model, batch)) == 0
    assert [block.units for block in describe_model(loaded).blocks] == [again.count(b) for b in anatomy.blocks]
    assert_counted_in_dense_model(loaded, anatomy, heads, plan, again)
