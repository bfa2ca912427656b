"""Cut models that are copied, pickled and replicated: their modules' own forwards go with them."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_prune import RandomPruningConfig, prune_model
from hf_prune.anatomy.own_forward import own_forward
from tests.conformance.plans import difference, prune, run
from tests.family_models import main_head, sample

# An emptied attention (with and without its output projection inside), sliced arguments, own tables, empty Conv1D.
TYPES = ("bert", "llama", "gpt2", "bloom", "t5")


def cut(model_type: str) -> PreTrainedModel:
    model = main_head(model_type).model()
    prune(model, sample(model))
    return model


def replaced(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if own_forward(module) is not None]


@pytest.mark.parametrize("model_type", TYPES)
def test_pickled_and_copied(model_type: str) -> None:
    model = cut(model_type)
    assert replaced(model)
    batch = sample(model)
    expected = run(model, batch)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        with torch.no_grad():  # the original's weights are none of the copy's business
            for parameter in model.parameters():
                parameter.mul_(0)
        assert difference(run(other, batch), expected) == 0


@pytest.mark.parametrize("model_type", TYPES)
def test_a_replica_runs_its_own_forward(model_type: str) -> None:
    for module in replaced(cut(model_type)):
        replica = module._replicate_for_data_parallel()
        assert own_forward(replica) is own_forward(module)
        assert replica.forward.args == (replica,)
        assert module.forward.args == (module,)


def test_taken_back_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model = main_head("bert").model()
    before = {name: set(module.__dict__) for name, module in model.named_modules()}

    def refuse(*args: object, **named: object) -> None:
        raise RuntimeError("refused")

    monkeypatch.setattr("hf_prune.pruning_run.write_metadata", refuse)
    with pytest.raises(RuntimeError, match="refused"):
        prune_model(model, RandomPruningConfig(flops=0.05, round_to=1))
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == before
