"""Checkpoints of a training that prunes: ordinary ones, from which it goes on as if it had never been interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainerCallback

from hf_prune import (
    HoldPruningConfig,
    L0PruningConfig,
    MagnitudePruningConfig,
    MovementPruningConfig,
    PruningCallback,
    PruningConfig,
    PruningError,
    RandomPruningConfig,
    resume_pruning,
)
from hf_prune.training import side_file
from tests.training.runs import (
    BERT,
    STEPS,
    assert_same,
    bert,
    history,
    is_clean,
    kept,
    train,
    trainer_of,
    weights,
)

SAVING = {"save_strategy": "steps", "save_steps": 1}

CONFIGS: dict[str, PruningConfig] = {
    "magnitude": MagnitudePruningConfig(sparsity=0.6, frequency=2),
    "global": MagnitudePruningConfig(sparsity=0.6, frequency=1, scope="global"),
    "pattern": MagnitudePruningConfig(pattern="2:4", frequency=2, exclude_modules=["word_embeddings"]),
    "delete": MagnitudePruningConfig(sparsity=0.6, frequency=2, after="delete"),
    "random": RandomPruningConfig(sparsity=0.6, frequency=2),
    "movement": MovementPruningConfig(sparsity=0.6, score_learning_rate=0.1),
    "soft_movement": MovementPruningConfig(threshold=0.4, score_learning_rate=0.5, regularization=10.0),
    "units": MagnitudePruningConfig(flops=0.5, round_to=1, frequency=2),
    "l0": L0PruningConfig(flops=0.5, round_to=1, begin=0.2, end=0.8, gate_learning_rate=1.0),
    "hold": HoldPruningConfig(),
}
EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def start(config: PruningConfig) -> PreTrainedModel:
    """The model that a training begins with; dropout is on."""
    model = bert(0.1)
    if isinstance(config, HoldPruningConfig):
        with torch.no_grad():
            for name, mask in kept(model).items():
                draw = torch.rand(mask.shape, generator=torch.Generator().manual_seed(len(name)))
                model.get_parameter(name).mul_(draw > 0.5)
    return model


class Snapshots(TrainerCallback):
    """The model's weights after every step, as a training without checkpoints would have them."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        self.weights[state.global_step] = weights(model)


@EVERY
class TestEveryStrategy:
    def test_checkpoints_are_ordinary(self, config: PruningConfig, tmp_path: Path) -> None:
        snapshots = Snapshots()
        trainer = trainer_of(start(config), tmp_path, PruningCallback(config), snapshots, **SAVING)
        trainer.train()
        assert sorted(snapshots.weights) == list(range(1, STEPS + 1))
        for step, expected in snapshots.weights.items():
            loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{step}")
            assert_same(weights(loaded), expected)

    def test_goes_on_bit_for_bit(self, config: PruningConfig, tmp_path: Path) -> None:
        whole, callback = start(config), PruningCallback(config)
        trainer = trainer_of(whole, tmp_path / "whole", callback, **SAVING)
        trainer.train()
        for step in (2, 3, STEPS):
            resumed, again = start(config), PruningCallback(config)
            folder = tmp_path / f"resumed-{step}"
            shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
            other = trainer_of(resumed, folder, again, **SAVING)
            other.train(resume_from_checkpoint=True)
            assert_same(weights(whole), weights(resumed))
            assert history(trainer) == history(other)
            assert again.result.plan.__class__ is callback.result.plan.__class__
            assert again.result.report.to_dict() == callback.result.report.to_dict()
            if step == STEPS:
                continue
            name = side_file(config)
            before = load_file(tmp_path / "whole" / f"checkpoint-{STEPS}" / name)
            assert_same(before, load_file(folder / f"checkpoint-{STEPS}" / name))

    def test_prunes(self, config: PruningConfig, tmp_path: Path) -> None:
        """What the tests above compare is not a model that nothing has happened to."""
        model = start(config)
        before = weights(model)
        callback = train(model, tmp_path, config)
        assert is_clean(model)
        if config in (CONFIGS["units"], CONFIGS["l0"]):
            assert callback.result.report.pruned.flops <= 0.5 * callback.result.report.dense.flops
            return
        removed = sum(int((~mask).sum()) for mask in callback.result.plan.masks.values())
        if config is CONFIGS["delete"]:  # they have learnt again, all but those that had no gradient
            assert 0 < removed < 0.1 * sum(mask.numel() for mask in callback.result.plan.masks.values())
        else:
            assert removed > 0.3 * sum(mask.numel() for mask in callback.result.plan.masks.values())
            assert_same({name: kept(model)[name] for name in callback.result.plan.masks}, callback.result.plan.masks)
        assert not torch.equal(model.classifier.weight, before["classifier.weight"])


def test_loads_without_this_library(tmp_path: Path, run_python: Callable[..., str]) -> None:
    train(bert(), tmp_path, CONFIGS["movement"], **SAVING)
    code = """
import sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
model, info = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], output_loading_info=True)
expected = load_file(sys.argv[1] + "/model.safetensors")
assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
assert not any(info.values()), info
assert "hf_prune" not in sys.modules
print("sparsity", float((model.bert.encoder.layer[0].output.dense.weight == 0).float().mean()))
"""
    # Of six steps two have been made; the schedule ends at the third.
    expected = round(0.6 * (1 - (1 / 3) ** 3) * 1280) / 1280
    assert run_python(code, tmp_path / "checkpoint-2").split()[1] == str(expected)


@pytest.mark.parametrize(
    "config",
    [
        MagnitudePruningConfig(flops=0.4, round_to=1, frequency=2),
        MagnitudePruningConfig(params=0.4, round_to=1, frequency=2, target_modules=["attention"]),
        RandomPruningConfig(flops=0.5, round_to=1, frequency=2),
    ],
    ids=["flops", "attention", "random"],
)
def test_what_is_cut_at_the_end_is_what_was_masked(config: PruningConfig, tmp_path: Path) -> None:
    model = bert()
    callback = train(model, tmp_path, config, **SAVING)
    callback.result.save_pretrained(tmp_path / "small")
    masked, cut = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name).eval()
        for name in (f"checkpoint-{STEPS}", "small")
    )
    assert cut.num_parameters() < masked.num_parameters()
    assert_same(weights(cut), weights(model))
    with torch.no_grad():
        expected, logits = masked(**BERT.batch()).logits, cut(**BERT.batch()).logits
    assert torch.allclose(logits, expected, atol=1e-4)
    dense = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-1").eval()
    assert not torch.allclose(dense(**BERT.batch()).logits, expected, atol=1e-1)


def test_a_checkpoint_says_how_sparse_it_is(tmp_path: Path) -> None:
    train(bert(), tmp_path, CONFIGS["magnitude"], **SAVING)
    for step in range(1, STEPS + 1):
        said = json.loads((tmp_path / f"checkpoint-{step}" / "config.json").read_text())["pruning"]["weights"]
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{step}")
        assert said["removed"] == sum(int((~mask).sum()) for mask in kept(model).values())


def test_fine_tuning_holds_what_a_checkpoint_has_lost(tmp_path: Path) -> None:
    train(bert(), tmp_path / "first", CONFIGS["magnitude"], **SAVING)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first" / f"checkpoint-{STEPS}")
    masks, before = kept(model), weights(model)
    callback = train(model, tmp_path / "second", None, learning_rate=1e-2)
    assert_same(kept(model), masks)
    assert_same(dict(callback.result.plan.masks), masks)
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])


def test_what_is_held_is_held_after_resuming(tmp_path: Path) -> None:
    train(bert(), tmp_path / "first", CONFIGS["magnitude"], **SAVING)
    path = tmp_path / "first" / f"checkpoint-{STEPS}"
    whole, resumed = (AutoModelForSequenceClassification.from_pretrained(path) for _ in range(2))
    train(whole, tmp_path / "second", None, **SAVING)
    trainer = trainer_of(resumed, tmp_path / "third", PruningCallback(checkpoint=tmp_path / "second" / "checkpoint-2"))
    trainer.train(resume_from_checkpoint=str(tmp_path / "second" / "checkpoint-2"))
    assert_same(weights(whole), weights(resumed))


class TestWhereTheSideFileLies:
    @pytest.fixture
    def whole(self, tmp_path: Path) -> dict[str, torch.Tensor]:
        model = bert(0.1)
        train(model, tmp_path / "first", CONFIGS["magnitude"], **SAVING)
        return weights(model)

    def test_in_another_folder(self, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
        elsewhere = tmp_path / "first" / "checkpoint-2"
        model = bert(0.1)
        trainer = trainer_of(model, tmp_path / "second", PruningCallback(CONFIGS["magnitude"], checkpoint=elsewhere))
        trainer.train(resume_from_checkpoint=str(elsewhere))
        assert_same(weights(model), whole)

    def test_in_another_folder_that_the_arguments_name(self, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
        elsewhere = str(tmp_path / "first" / "checkpoint-2")
        model = bert(0.1)
        callback = PruningCallback(CONFIGS["magnitude"])
        trainer = trainer_of(model, tmp_path / "second", callback, resume_from_checkpoint=elsewhere)
        trainer.train(resume_from_checkpoint=elsewhere)
        assert_same(weights(model), whole)

    def test_not_found(self, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
        trainer = trainer_of(bert(0.1), tmp_path / "second", PruningCallback(CONFIGS["magnitude"]))
        with pytest.raises(PruningError, match=r"PruningCallback\(config, checkpoint=\.\.\.\)"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))

    def test_not_that_of_another_run(self, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
        """A folder of the same name in the output folder has another run's masks."""
        train(bert(0.1, seed=1), tmp_path / "second", CONFIGS["magnitude"], **SAVING)
        trainer = trainer_of(bert(0.1), tmp_path / "second", PruningCallback(CONFIGS["magnitude"]))
        with pytest.raises(PruningError, match=r"checkpoint=\.\.\."):
            trainer.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))

    def test_with_the_callback_from_the_checkpoint(self, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
        model = bert(0.1)
        callback = PruningCallback(CONFIGS["magnitude"])
        settings = {"restore_callback_states_from_checkpoint": True}
        trainer = trainer_of(model, tmp_path / "first", callback, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
        assert_same(weights(model), whole)

    def test_only_the_model_is_saved(self, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
        """Then the optimizer begins anew; the masks do not."""
        train(bert(0.1), tmp_path / "small", CONFIGS["magnitude"], save_only_model=True, **SAVING)
        model = bert(0.1)
        trainer = trainer_of(model, tmp_path / "small", callback := PruningCallback(CONFIGS["magnitude"]))
        trainer.train(resume_from_checkpoint=str(tmp_path / "small" / f"checkpoint-{STEPS - 1}"))
        for name, mask in callback.result.plan.masks.items():
            assert int((~mask).sum()) == round(0.6 * mask.numel()), name

    def test_of_two_callbacks(self, tmp_path: Path) -> None:
        def callbacks() -> list[PruningCallback]:
            query = MagnitudePruningConfig(sparsity=0.8, frequency=2, target_modules=["query"])
            key = MagnitudePruningConfig(sparsity=0.4, frequency=2, target_modules=["key"])
            filters = MovementPruningConfig(sparsity=0.6, target_modules=["intermediate.dense"])
            return [PruningCallback(config) for config in (query, key, filters)]

        whole, resumed = bert(0.1), bert(0.1)
        trainer_of(whole, tmp_path, *callbacks(), **SAVING).train()
        for limit in (2, STEPS - 1):
            resumed = bert(0.1)
            trainer = trainer_of(resumed, tmp_path, *callbacks())
            trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{limit}"))
            assert_same(weights(whole), weights(resumed))


class TestRefusals:
    CONFIG = MagnitudePruningConfig(sparsity=0.6, frequency=2)

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        train(bert(), tmp_path, self.CONFIG, **SAVING)
        return tmp_path / "checkpoint-3"

    def resume(self, checkpoint: Path, config: PruningConfig | None, match: str, **settings: Any) -> None:
        model = bert()
        trainer = trainer_of(model, checkpoint.parent, PruningCallback(config), **settings)
        with pytest.raises(PruningError, match=match):
            trainer.train(resume_from_checkpoint=str(checkpoint))
        assert is_clean(model)

    def test_another_strategy(self, checkpoint: Path) -> None:
        self.resume(
            checkpoint, MovementPruningConfig(sparsity=0.6), "this MovementPruning.*not pruning_state.magnitude"
        )

    def test_other_settings(self, checkpoint: Path) -> None:
        other = MagnitudePruningConfig(sparsity=0.7, frequency=2)
        self.resume(checkpoint, other, r"sparsity=0\.6 \(now 0\.7\)")

    def test_other_length(self, checkpoint: Path) -> None:
        self.resume(checkpoint, self.CONFIG, "6 steps, but this one has 9", max_steps=9)

    def test_no_side_file(self, checkpoint: Path) -> None:
        (checkpoint / side_file(self.CONFIG)).unlink()
        self.resume(checkpoint, self.CONFIG, "none in .*checkpoint-3")

    def test_other_modules(self, checkpoint: Path) -> None:
        other = MagnitudePruningConfig(sparsity=0.6, frequency=2, target_modules=["query"])
        self.resume(checkpoint, other, r"would have written pruning_state\.magnitude-\w{8}\.safetensors and not")

    def test_a_damaged_side_file(self, checkpoint: Path) -> None:
        path = checkpoint / side_file(self.CONFIG)
        path.write_bytes(path.read_bytes()[:-7])
        self.resume(checkpoint, self.CONFIG, r"is damaged or another run's.*checkpoint=\.\.\.")
        with pytest.raises(PruningError, match=r"safetensors is damaged: "):
            resume_pruning(bert(), self.CONFIG, STEPS, checkpoint)

    def test_a_run_without_pruning(self, tmp_path: Path) -> None:
        trainer_of(bert(), tmp_path, **SAVING).train()
        self.resume(tmp_path / "checkpoint-3", self.CONFIG, "not of a run with this Magn.*from_pretrained")

    def test_side_files_whose_tensors_do_not_fit(self, checkpoint: Path) -> None:
        path = checkpoint / side_file(self.CONFIG)
        tensors = load_file(path)
        name = next(name for name in tensors if name.endswith(".removed"))
        with safe_open(path, "pt") as file:
            about = file.metadata()
        model = bert()
        for changed in (tensors[name][:-1].clone(), torch.zeros(2), tensors[name].half()):
            save_file({**tensors, name: changed}, path, about)
            with pytest.raises(PruningError, match=r"removed weights of torch\.float32 are needed"):
                resume_pruning(model, self.CONFIG, 6, checkpoint)
            assert is_clean(model)
