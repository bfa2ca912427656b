"""Every model type in the table with every task head: masked, gated, cut, saved and loaded, it says the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy import supported_model_types
from hf_prune.surgery import shrink_model, write_metadata
from tests.conformance.plans import TOLERANCE, assert_gates_mask, difference, run, varied_plan
from tests.family_models import EVERY_HEAD, VARIANTS, Head, heads_of, sample


@pytest.mark.parametrize("model_type", supported_model_types())
def test_every_type_has_heads(model_type: str) -> None:
    assert heads_of(model_type)


@pytest.mark.parametrize("head", [*EVERY_HEAD, *VARIANTS], ids=str)
def test_cut_saved_and_loaded_model_equals_the_masked_one(head: Head, tmp_path: Path) -> None:
    model = head.model()
    batch = sample(model)
    anatomy = describe_model(model)
    plan = varied_plan(anatomy)
    masked = assert_gates_mask(model, anatomy, plan, batch)
    shrink_model(model, anatomy, plan)
    write_metadata(model, anatomy, plan, {"strategy": "by hand"}, {}, {})
    shrunk = run(model, batch)
    assert difference(shrunk, masked) <= TOLERANCE
    assert [block.units for block in describe_model(model).blocks] == [plan.count(b) for b in anatomy.blocks]

    model.save_pretrained(tmp_path)
    loaded = head.auto_class.from_pretrained(tmp_path)
    assert type(loaded) is head.model_class
    assert loaded.config.architectures == [head.model_class.__name__]
    assert_same_weights(loaded, model)
    assert difference(run(with_own_memory(loaded), batch), shrunk) == 0


def assert_same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """Both models have the same names and, bit for bit, the same tensors."""
    state, expected = one.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []


def with_own_memory(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose weights start where PyTorch puts them.

    Loaded ones start wherever they do in the file, and the last bit of a small matrix product can depend on that.
    """
    return copy.deepcopy(model)
