"""What spectral normalisation cannot be put on, and settings that it does not have."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from hf_prune import PruningError
from hf_prune.gates import (
    add_spectral_norm,
    has_spectral_norm,
    largest_singular_values,
)
from hf_prune.gates.spectral_parametrization import normalised_matrices
from tests.family_models import main_head
from tests.small_models import case

CASE = case("bert", "masked")
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
OUTPUT = "bert.encoder.layer.1.attention.output.dense.weight"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bound": 0}, r"bound=0 must be a number above 0"),
        ({"bound": float("nan")}, "bound=nan"),
        ({"bound": True}, "bound=True"),
        ({"bound": "5"}, "bound='5'"),
        ({"bound": math.inf, "form": "divide"}, "finite with form='divide'"),
        ({"form": "scale"}, "form='scale' is unknown; use one of clip, divide"),
        ({"iterations": 0}, "iterations=0"),
        ({"iterations": 1.0}, r"iterations=1\.0"),
        ({"target_modules": ["LayerNorm"]}, "'LayerNorm' matches nothing"),
        ({"target_modules": ["word_embeddings"]}, r"a table of embeddings.*exclude_modules=\['word_embeddings'\]"),
        ({"exclude_modules": ["nothing"]}, "exclude_modules: 'nothing' matches nothing"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(settings: dict[str, object], message: str) -> None:
    model = CASE.model()
    with pytest.raises(PruningError, match=message):
        add_spectral_norm(model, **settings)  # type: ignore[arg-type]
    assert not has_spectral_norm(model)
    assert not model._forward_pre_hooks


def tie(model: PreTrainedModel) -> None:
    layers = model.bert.encoder.layer
    layers[2].attention.self.query.weight = layers[1].attention.self.query.weight


def break_one(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.get_parameter(OUTPUT)[0, 0] = math.nan


def parametrize_one(model: PreTrainedModel) -> None:
    parametrize.register_parametrization(model.bert.encoder.layer[1].attention.output.dense, "weight", nn.Identity())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (tie, f"{QUERY} is tied"),
        (break_one, f"{OUTPUT} has weights that are not finite"),
        (parametrize_one, f"{OUTPUT} is computed by a parametrization already"),
        (add_spectral_norm, "parametrization already"),
        (lambda model: model.half().to("meta"), "no values yet"),
    ],
)
def test_matrices_that_cannot_be_normalised_are_refused(
    spoil: Callable[[PreTrainedModel], object], message: str
) -> None:
    model = CASE.model()
    spoil(model)
    before = len(normalised_matrices(model))
    with pytest.raises(PruningError, match=message):
        add_spectral_norm(model)
    assert len(normalised_matrices(model)) == before


def test_experts_are_refused_unless_they_are_left_out() -> None:
    model = main_head("mixtral").model()
    with pytest.raises(PruningError, match=r"several experts in one parameter.*exclude_modules=\['experts'\]"):
        add_spectral_norm(model)
    names = add_spectral_norm(model, exclude_modules=["experts"])
    assert "model.layers.0.self_attn.q_proj.weight" in names


def test_peft_adapters_are_refused() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(CASE.model(), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(PruningError, match=r"wrapped by a PEFT adapter.*Merge"):
        add_spectral_norm(model)


def test_without_it_there_are_no_singular_values() -> None:
    with pytest.raises(PruningError, match="BertForMaskedLM has no spectral normalisation"):
        largest_singular_values(CASE.model())
