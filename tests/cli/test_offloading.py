from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_prune import PruningError
from hf_prune.commands import inputs
from hf_prune.commands.models import load_model
from hf_prune.offloading import is_offloaded
from tests.cli.rows import Call


def test_a_model_that_stays_on_disk(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as without, metrics and all, from one layer in memory at a time."""
    used = []

    def watched(*args: object, **settings: object) -> object:
        found = load_model(*args, **settings)
        used.append(is_offloaded(found[0]))
        return found

    monkeypatch.setattr(inputs, "load_model", watched)
    metrics, weights = [], []
    on_disk = ("--device_map", "disk", "--offload_folder", tmp_path / "offload")
    for name, options in (("memory", ()), ("disk", on_disk)):
        result = call(
            "run", models["classification"], "--train_file", sentences, "--validation_file", sentences,
            "--flops", "0.5", "--max_seq_length", "16", "--num_samples", "16",
            "--output_dir", tmp_path / name, "--json", *options,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        metrics.append(json.loads(result.stdout)["report"]["metrics"])
        weights.append(AutoModelForSequenceClassification.from_pretrained(tmp_path / name).state_dict())
    assert used == [False, True]
    assert metrics[1]["pruned"] == pytest.approx(metrics[0]["pruned"], rel=1e-4)
    torch.testing.assert_close(weights[1], weights[0])
    gc.collect()
    assert not list((tmp_path / "offload").glob("hf_prune-*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "tape"}, "device_map='tape' is unknown; use auto or disk"),
        ({"device_map": "disk", "device": "cpu"}, "device='cpu' and device_map='disk' exclude each other"),
        ({"offload_folder": Path("folder")}, "offload_folder=folder belongs to a device_map"),
    ],
)
def test_places_that_do_not_go_together(models: dict[str, Path], options: dict[str, object], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        load_model(str(models["classification"]), AutoModelForSequenceClassification, **options)


def test_auto(models: dict[str, Path]) -> None:
    """What fits is simply loaded."""
    model, missing = load_model(str(models["classification"]), AutoModelForSequenceClassification, device_map="auto")
    assert not missing
    assert not model.training
    assert not any(parameter.is_meta for parameter in model.parameters()) or is_offloaded(model)
