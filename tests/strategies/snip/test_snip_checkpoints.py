"""Checkpoints in every phase: ordinary ones, from which training goes on as if it had never been interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hf_prune import PruningCallback, PruningError, PruningResult, SnipPruningConfig, start_pruning
from hf_prune.report import TradeOffCurve
from hf_prune.strategies.snip.iterations import Iterations
from hf_prune.training import side_file
from tests.strategies.snip.runs import STEPS, Watch, config, logits_of
from tests.training.runs import BERT, assert_same, bert, history, is_clean, stored, trainer_of, weights

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": STEPS}
CONFIGS = {
    "joint": config(layer_rate_decay=0.8, k=2),
    "divided": config(units="sublayers", spectral_norm=2.0, spectral_form="divide"),
    "clipped": config(units="layers", spectral_norm=1.0, reduction="example"),
}
# Steps after which a checkpoint lies in the middle of a phase, or at its end.
STOPS = {3: "measured", 4: "gated", 5: "gated", 6: "open", STEPS: "open"}
RESUMED = [("joint", step) for step in STOPS] + [(name, step) for name in ("divided", "clipped") for step in (3, 5, 6)]


@dataclass(frozen=True)
class Run:
    """One whole training, with a checkpoint after every step."""

    settings: SnipPruningConfig
    folder: Path
    model: PreTrainedModel
    result: PruningResult
    logits: dict[int, torch.Tensor]
    history: list[dict[str, float]]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    @cache
    def run(name: str) -> Run:
        folder, settings = tmp_path_factory.mktemp(name), CONFIGS[name]
        model, callback, watch = bert(0.1), PruningCallback(settings), Watch(BERT.batch())
        trainer = trainer_of(model, folder, callback, watch, **SAVING)
        trainer.train()
        return Run(settings, folder, model, callback.result, watch.logits, history(trainer))

    return run


EVERY = pytest.mark.parametrize("name", CONFIGS)


def test_the_stops_are_in_every_phase() -> None:
    iterations = Iterations(STEPS, 2, 0.5, 0.25)
    assert {step: iterations.place(step).phase for step in STOPS} == STOPS


@EVERY
def test_every_checkpoint_is_ordinary(run_of: Callable[[str], Run], name: str) -> None:
    """It says what the model says when it is evaluated, whose gates are open then."""
    run = run_of(name)
    assert sorted(run.logits) == list(range(1, STEPS + 1))
    for step, logits in run.logits.items():
        loaded, info = AutoModelForSequenceClassification.from_pretrained(
            run.folder / f"checkpoint-{step}", output_loading_info=True
        )
        assert not any(info.values()), info
        assert torch.allclose(logits_of(loaded, BERT.batch()), logits, atol=1e-6), step
    assert not torch.allclose(run.logits[1], run.logits[STEPS], atol=1e-2)


def numbers(side_file: Path) -> dict[str, torch.Tensor]:
    """What is stored; NaN, which is not equal to itself, stands for what was not measured."""
    return {name: value.nan_to_num(-1) for name, value in load_file(side_file).items()}


@pytest.mark.parametrize(("name", "step"), RESUMED)
def test_goes_on_bit_for_bit(run_of: Callable[[str], Run], name: str, step: int, tmp_path: Path) -> None:
    run = run_of(name)
    shutil.copytree(run.folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    resumed, again = bert(0.1), PruningCallback(run.settings)
    trainer = trainer_of(resumed, tmp_path, again, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert_same(weights(run.model), weights(resumed))
    assert again.result.curve == run.result.curve
    assert again.result.report.to_dict() == run.result.report.to_dict()
    assert history(trainer) == run.history
    if step == STEPS:
        return
    assert TradeOffCurve.load(tmp_path) == run.result.curve
    last, name = Path(f"checkpoint-{STEPS}"), side_file(run.settings)
    assert_same(stored(run.folder / last), stored(tmp_path / last))
    assert_same(numbers(run.folder / last / name), numbers(tmp_path / last / name))


@EVERY
def test_something_happened(run_of: Callable[[str], Run], name: str) -> None:
    """What the tests above compare is not a model that nothing has happened to."""
    run = run_of(name)
    curve = run.result.curve
    assert len(curve) == 3
    assert curve[2].params < curve[1].params < 1
    assert is_clean(run.model)
    tensors = load_file(run.folder / "checkpoint-5" / side_file(run.settings))
    assert any(name.startswith("gates.epsilon.") for name in tensors)
    opened = [value for name, value in tensors.items() if name.endswith(".opened.count")]
    assert opened
    assert all(float(count) > 0 for count in opened)
    assert any(name.endswith("query.weight.raw") for name in tensors) == (run.settings.spectral_norm is not None)


@EVERY
def test_damaged_states_are_refused(run_of: Callable[[str], Run], name: str) -> None:
    """And nothing of the attempt stays on the model."""
    run, model = run_of(name), bert()
    tensors = load_file(run.folder / "checkpoint-9" / side_file(run.settings))
    model.load_state_dict(stored(run.folder / "checkpoint-9"))
    for key, changed, message in (
        ("curve", None, "no trade-off curve"),
        ("curve", tensors["curve"][:-2], "not a trade-off curve"),
        ("mean.0", None, "mean activations do not fit"),
        ("encoder.layer.0.attention.units", torch.ones(2, dtype=torch.bool), "does not fit 4 units"),
    ):
        pruner = start_pruning(model, run.settings, STEPS)
        changes = tensors | {key: changed}
        damaged = {item: value for item, value in changes.items() if value is not None}
        with pytest.raises(PruningError, match=message):
            pruner.load_state(damaged, 9)
        pruner.abandon()
        assert is_clean(model)
