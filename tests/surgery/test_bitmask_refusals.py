"""Checkpoints in the bitmask format where they cannot be read, and everything else that the hook leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from hf_prune import PruningError
from hf_prune.surgery import bitmask_checkpoints, install_bitmask_hook, save_bitmask
from tests import mixtures
from tests.small_models import case
from tests.sparse_models import assert_same_weights, is_packed_folder, made_sparse, stored

BERT = case("bert", "classification")


@pytest.fixture
def model() -> PreTrainedModel:
    return made_sparse(BERT.model())


def test_upload_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(PruningError, match="push_to_hub"):
        save_bitmask(model, tmp_path / "model", push_to_hub=True)
    assert not (tmp_path / "model").exists()


def test_other_processes_write_nothing(model: PreTrainedModel, tmp_path: Path) -> None:
    save_bitmask(model, tmp_path, is_main_process=False)
    assert list(tmp_path.iterdir()) == []


def test_mismatched_head_is_refused_or_made_anew(model: PreTrainedModel, tmp_path: Path) -> None:
    wide = made_sparse(BERT.model(num_labels=40))
    save_bitmask(wide, tmp_path)
    assert "classifier.weight_bitmask" in stored(tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    with pytest.raises(RuntimeError, match="mismatch"):
        load(tmp_path, num_labels=2)
    loaded = load(tmp_path, num_labels=2, ignore_mismatched_sizes=True)
    assert_same_weights(loaded.bert, wide.bert)
    assert loaded.classifier.weight.shape == (2, 32)


def test_damaged_file_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    save_bitmask(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.weight"
    tensors[f"{name}_bitmask"][3] ^= 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PruningError, match=rf"{name} in .*model\.safetensors .* bits set"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    del tensors[f"{name}_bitmask"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PruningError, match=rf"{name} in .* no tensor {name}_bitmask"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


LOAD_WITHOUT_HF_PRUNE = """
import sys

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

for loader, folder in (
    (AutoModelForSequenceClassification, sys.argv[1]), (AutoModel, sys.argv[1]), (AutoModelForCausalLM, sys.argv[2])
):
    try:
        loader.from_pretrained(folder)
        print("loaded")
    except RuntimeError as error:
        print("refused", str(error).replace(chr(10), " "))
assert "hf_prune" not in sys.modules
"""


def test_loading_without_hf_prune_fails(model: PreTrainedModel, tmp_path: Path, run_python: Callable[..., str]) -> None:
    save_bitmask(model, tmp_path / "bert")
    save_bitmask(made_sparse(mixtures.mixture("mixtral")), tmp_path / "mixtral")
    found = run_python(LOAD_WITHOUT_HF_PRUNE, tmp_path / "bert", tmp_path / "mixtral").splitlines()
    assert [line.split()[0] for line in found] == ["refused"] * 3


def test_trainer_does_not_resume_from_packed_weights(model: PreTrainedModel, tmp_path: Path) -> None:
    batch = BERT.batch()
    rows = [{name: value[index] for name, value in batch.items()} for index in range(4)]
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=2, save_steps=1, report_to=[], use_cpu=True)
    Trainer(model, arguments, train_dataset=rows).train()
    checkpoint = tmp_path / "checkpoint-1"
    assert not is_packed_folder(checkpoint)
    Trainer(BERT.model(), arguments, train_dataset=rows).train(resume_from_checkpoint=str(checkpoint))
    save_bitmask(made_sparse(model), checkpoint)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Trainer(BERT.model(), arguments, train_dataset=rows).train(resume_from_checkpoint=str(checkpoint))


@pytest.fixture
def passed_on(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the hook hands to the method that it wraps; the method itself is not run."""
    seen: list[Any] = []
    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", staticmethod(lambda *given: seen.append(given)))
    install_bitmask_hook()
    return seen


def test_zero3_gets_tensors(
    model: PreTrainedModel, tmp_path: Path, passed_on: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bitmask(model, tmp_path)
    monkeypatch.setattr(bitmask_checkpoints, "is_deepspeed_zero3_enabled", lambda: True)
    PreTrainedModel._load_pretrained_model(model, None, [str(tmp_path / "model.safetensors")], None)
    [(_, state, files, _)] = passed_on
    assert files is None
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


def test_other_checkpoints_are_left_alone(model: PreTrainedModel, tmp_path: Path, passed_on: list[Any]) -> None:
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    calls = [
        (model, None, [str(tmp_path / "model.safetensors")], "settings"),
        (model, None, [str(tmp_path / "pytorch_model.bin")], "settings"),
        (model, state, None, "settings"),
        (model, state, [str(tmp_path / "model.safetensors")], "settings"),
    ]
    for call in calls:
        PreTrainedModel._load_pretrained_model(*call)
    for made, call in zip(passed_on, calls, strict=True):
        assert all(seen is given for seen, given in zip(made, call, strict=True))


def test_hook_is_installed_once() -> None:
    hooked = PreTrainedModel._load_pretrained_model
    install_bitmask_hook()
    assert PreTrainedModel._load_pretrained_model is hooked
    assert hooked.__name__ == "_load_pretrained_model"
