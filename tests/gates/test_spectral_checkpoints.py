"""Spectral normalisation while a model is trained and saved: checkpoints are those of an ordinary model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedModel,
    TrainerCallback,
)

from hf_prune import HeadGateMixin, PruningError, SpectralNormMixin
from hf_prune.gates import (
    add_spectral_norm,
    has_spectral_norm,
    largest_singular_values,
    load_spectral_state,
    remove_spectral_norm,
    spectral_state,
)
from hf_prune.gates.spectral_parametrization import normalised_matrices
from tests.small_models import HEADS, case, scale_weights
from tests.training.runs import BERT, assert_same, bert, stored, trainer_of, weights

MASKED = case("bert", "masked")
BOUND = 3.9  # between the largest singular values of the small model's matrices
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
SIDE_FILE = "side.safetensors"


class NormalisedBert(SpectralNormMixin, HeadGateMixin, BertForSequenceClassification):
    pass


def test_the_state_dict_is_that_of_the_model_with_folded_weights() -> None:
    model = MASKED.model()
    plain = copy.deepcopy(model)
    add_spectral_norm(model, bound=BOUND)
    state, own = model.state_dict(), model.bert.encoder.layer[1].attention.self.query.state_dict()
    assert list(state) == list(plain.state_dict())
    assert list(own) == ["weight", "bias"]
    folded = copy.deepcopy(model)
    remove_spectral_norm(folded)
    assert_same(dict(state), weights(folded))
    assert torch.equal(own["weight"], state[QUERY])


@pytest.mark.parametrize("form", ["clip", "divide"])
def test_a_model_saved_in_the_middle_loads_as_what_it_computed(form: str, tmp_path: Path) -> None:
    model, batch = MASKED.model(), MASKED.batch()  # its decoder is tied to the embeddings
    add_spectral_norm(model, bound=BOUND, form=form)
    expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, expected)
    assert torch.equal(model(**batch).logits, expected)
    assert not has_spectral_norm(loaded)
    assert not [name for name in stored(tmp_path) if "parametriz" in name]


def test_a_loaded_state_dict_becomes_the_raw_weights_with_exact_singular_values() -> None:
    model, other = bert(), bert(seed=5)
    add_spectral_norm(model, bound=BOUND)
    assert str(model.load_state_dict(other.state_dict())) == "<All keys matched successfully>"
    for name, value in largest_singular_values(model).items():
        assert value == pytest.approx(float(torch.linalg.svdvals(other.get_parameter(name).detach())[0]), rel=1e-5)
    remove_spectral_norm(model, fold=False)
    assert_same(weights(model), weights(other))


def trained(model: PreTrainedModel, steps: int = 3) -> PreTrainedModel:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for seed in range(steps):
        model.train()(**BERT.batch(seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("form", ["clip", "divide"])
def test_state_dict_and_side_state_are_the_model(form: str) -> None:
    model = bert()
    add_spectral_norm(model, bound=BOUND, form=form)
    trained(model)
    state, side = weights(model), spectral_state(model)
    values = largest_singular_values(model)
    raw = {name.removesuffix(".raw") for name in side if name.endswith(".raw")}
    assert raw == {name for name, value in values.items() if form == "divide" or value > BOUND}
    assert len(raw) > 0
    if form == "clip":
        assert len(raw) < len(values)
    other = bert(seed=7)
    add_spectral_norm(other, bound=BOUND, form=form)
    other.load_state_dict(state)
    load_spectral_state(other, side | {f"{QUERY}.bits": torch.zeros(1)})
    for one, two in zip(*map(normalised_matrices, (model, other)), strict=True):
        assert torch.equal(one.raw, two.raw)
        assert torch.equal(one.norm.vector, two.norm.vector)
    assert_same(weights(trained(model)), weights(trained(other)))


def test_the_side_state_is_a_copy() -> None:
    model = bert()
    add_spectral_norm(model, bound=0.5)
    side = spectral_state(model)
    before = {name: value.clone() for name, value in side.items()}
    trained(model)
    assert_same(side, before)
    assert spectral_state(bert()) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{QUERY}.vector": None}, f"{QUERY}.vector is missing"),
        ({f"{QUERY}.vector": torch.zeros(3)}, r"\.vector: \(32,\) of torch.float32 is needed, got \(3,\)"),
        ({f"{QUERY}.raw": torch.zeros(32, 32, dtype=torch.float16)}, r"\.raw: .* got \(32, 32\) of torch.float16"),
    ],
)
def test_a_side_state_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    model = bert()
    add_spectral_norm(model, bound=BOUND)
    side = {name: torch.zeros_like(value) for name, value in spectral_state(model).items()} | change
    side = {name: value for name, value in side.items() if value is not None}
    before = spectral_state(model)
    with pytest.raises(PruningError, match=message):
        load_spectral_state(model, side)
    assert_same(spectral_state(model), before)


class KeepsSideState(TrainerCallback):
    """Writes the side state beside checkpoints, and loads it from one."""

    def __init__(self, resumed: Path | None = None) -> None:
        self._resumed = resumed

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_file(spectral_state(kwargs["model"]), folder / SIDE_FILE)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._resumed is not None:
            load_spectral_state(kwargs["model"], load_file(self._resumed / SIDE_FILE))


def normalised_bert() -> PreTrainedModel:
    model = bert(dropout=0.1)
    add_spectral_norm(model, bound=BOUND)
    return model


def test_a_trainers_checkpoints_are_ordinary_and_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 3e-2}
    model = normalised_bert()
    trainer_of(model, tmp_path, KeepsSideState(), **settings).train()
    last = tmp_path / "checkpoint-6"
    loaded = AutoModelForSequenceClassification.from_pretrained(last)
    batch = BERT.batch()
    assert torch.equal(loaded(**batch).logits, model.eval()(**batch).logits)
    assert list(loaded.state_dict()) == list(model.state_dict()) == list(bert().state_dict())
    assert max(largest_singular_values(model).values()) > BOUND
    used = [loaded.get_parameter(name).detach() for name in largest_singular_values(model)]
    assert max(float(torch.linalg.svdvals(weight)[0]) for weight in used) == pytest.approx(BOUND, rel=0.02)

    again, middle = normalised_bert(), tmp_path / "checkpoint-3"
    trainer = trainer_of(again, tmp_path / "again", KeepsSideState(middle), **settings)
    trainer.train(resume_from_checkpoint=str(middle))
    assert_same(weights(again), weights(model))
    assert_same(spectral_state(again), spectral_state(model))


def test_the_best_checkpoint_is_loaded_with_the_norm_on(tmp_path: Path) -> None:
    model = normalised_bert()
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = trainer_of(
        model,
        tmp_path,
        trainer_settings={"eval_dataset": trainer_of(bert(), tmp_path).train_dataset},
        load_best_model_at_end=True,
        learning_rate=3e-2,
        **settings,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    remove_spectral_norm(model)
    found, saved = weights(model), stored(Path(best))
    assert all(torch.allclose(found[name], saved[name], rtol=1e-2) for name in saved)


def test_the_mixin_saves_under_the_original_name(tmp_path: Path) -> None:
    model = NormalisedBert(BERT.config()).eval()
    scale_weights(model)
    assert model.singular_values == {}
    assert QUERY in model.add_spectral_norm(bound=BOUND)
    assert model.singular_values == largest_singular_values(model)
    gates = torch.linspace(0.5, 2, HEADS)
    model.add_head_gates([gates] * 3)
    expected = model(**BERT.batch()).logits
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is BertForSequenceClassification
    torch.testing.assert_close(loaded(**BERT.batch()).logits, expected, atol=1e-5, rtol=1e-5)
    model.remove_head_gates()
    raw = {item.name: item.raw.detach().clone() for item in normalised_matrices(model)}
    model.remove_spectral_norm(fold=False)
    assert not has_spectral_norm(model)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in raw.items())
