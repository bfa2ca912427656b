"""`hf-prune run` and `hf-prune inspect` where single weights are pruned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
)

from hf_prune import AutoPruningConfig, MagnitudePruningConfig, RandomPruningConfig, prune_model
from hf_prune.commands import stored_zeros as zeros_module
from tests.cli.rows import Call
from tests.sparse_models import is_packed_folder

HALF = ("--strategy", "magnitude", "--sparsity", "0.5")


@pytest.fixture(scope="module")
def sparse(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of which 90 % of the weights are gone, written in both formats."""
    model = BertForSequenceClassification.from_pretrained(models["classification"])
    result = prune_model(model, MagnitudePruningConfig(sparsity=0.9))
    folders = {form: tmp_path_factory.mktemp(form) for form in ("dense", "bitmask")}
    for form, folder in folders.items():
        result.save_pretrained(folder, format=form)
    return folders


def without_report(folder: Path, target: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, target)
    return target


def answer(call: Call, folder: Path) -> dict[str, Any]:
    result = call("inspect", folder, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_no_rows_are_needed(models: dict[str, Path], tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "sparse"
    result = call("run", models["classification"], *HALF, "--output_dir", folder)
    assert result.exit_code == 0, result.output
    assert "magnitude pruning" in result.stdout
    assert "attention.self.query" in result.stdout
    assert "Calibrating" not in result.stderr
    dense = BertForSequenceClassification.from_pretrained(models["classification"])
    expected = prune_model(dense, MagnitudePruningConfig(sparsity=0.5)).model.state_dict()
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert len(AutoTokenizer.from_pretrained(folder)) == len(AutoTokenizer.from_pretrained(models["classification"]))
    assert AutoPruningConfig.from_pretrained(folder) == MagnitudePruningConfig(sparsity=0.5)


def test_metrics_need_only_rows_to_measure_on(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    folder = tmp_path / "sparse"
    result = call(
        "run", models["classification"], *HALF, "--train_file", tmp_path / "absent.tsv", "--validation_file", sentences,
        "--output_dir", folder, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)["report"]
    assert report == json.loads((folder / "pruning_report.json").read_text())
    assert {"accuracy", "loss"} <= set(report["metrics"]["pruned"])
    assert "absent.tsv is not read" in result.stderr
    table = call(
        "run", models["classification"], *HALF, "--validation_file", sentences, "--output_dir", tmp_path / "again"
    ).stdout
    assert "Metrics" in table
    assert "accuracy" in table


def test_movement_calibrates_on_rows(models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call) -> None:
    movement = ("run", models["classification"], "--strategy", "movement", "--sparsity", "0.5", "--output_dir")
    refused = call(*movement, tmp_path / "refused")
    assert refused.exit_code == 2
    assert "give --dataset_name, or --train_file" in refused.stderr
    result = call(*movement, tmp_path / "sparse", "--train_file", sentences, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["report"]["matrices"]
    assert {row["removed"] / row["weights"] for row in rows} == {0.5}
    assert "Calibrating on 48 of 48 rows" in result.stderr


def test_units_go_at_random_without_rows(models: dict[str, Path], tmp_path: Path, call: Call) -> None:
    result = call(
        "run", models["words"], "--strategy", "random", "--params", "0.5", "--output_dir", tmp_path / "small", "--json"
    )
    assert result.exit_code == 0, result.output
    sizes = json.loads(result.stdout)["report"]
    assert sizes["pruned"]["unit_parameters"] <= 0.5 * sizes["dense"]["unit_parameters"]


def test_a_model_without_a_task_or_a_tokenizer(tmp_path: Path, call: Call) -> None:
    dense = tmp_path / "dense"
    MambaForCausalLM(MambaConfig(num_hidden_layers=1, hidden_size=8, vocab_size=10)).save_pretrained(dense)
    result = call("run", dense, *HALF, "--output_dir", tmp_path / "sparse", "--json")
    assert result.exit_code == 0, result.output
    assert "No tokenizer is saved along" in result.stderr
    assert json.loads(result.stdout)["report"]["model_type"] == "mamba"
    found = answer(call, tmp_path / "sparse")
    assert found["weights"]["report"] == json.loads(result.stdout)["report"]
    assert found["flops"] is None
    assert found["blocks"] == []
    assert "in_proj" in call("inspect", tmp_path / "sparse").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategy", "hold"), "HoldPruningConfig works only while a model is trained"),
        ((*HALF, "--format", "zip"), "format='zip' is unknown; use one of dense, bitmask"),
        (("--strategy", "magnitude"), "exactly one budget out of flops, params, latency, latency_ms, sparsity"),
        (("--strategy", "magnitude", "--sparsity", "1"), "sparsity=1.0 must lie in [0, 1)"),
        ((*HALF, "--flops", "0.5"), "exactly one budget"),
        (("--strategy", "fisher", "--sparsity", "0.5"), "'fisher' strategy has no setting 'sparsity'"),
        ((*HALF, "--target_modules", "qery"), "Did you mean 'query'"),
        (("--flops", "0.5"), "Error: Rows are needed"),
    ],
)
def test_bad_requests(
    models: dict[str, Path], tmp_path: Path, call: Call, arguments: tuple[str, ...], message: str
) -> None:
    result = call("run", models["classification"], *arguments, "--output_dir", tmp_path / "sparse")
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_bitmask_format(models: dict[str, Path], tmp_path: Path, call: Call) -> None:
    settings = ("--strategy", "magnitude", "--sparsity", "0.9")
    for form in ("dense", "bitmask"):
        folder = tmp_path / form
        result = call("run", models["classification"], *settings, "--format", form, "--output_dir", folder)
        assert result.exit_code == 0, result.output
        assert is_packed_folder(folder) == (form == "bitmask")
    states = [AutoModelForSequenceClassification.from_pretrained(tmp_path / form).state_dict() for form in
              ("dense", "bitmask")]  # fmt: skip
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_inspect_shows_the_report(sparse: dict[str, Path], call: Call) -> None:
    for folder in sparse.values():
        found = answer(call, folder)
        report = json.loads((folder / "pruning_report.json").read_text())
        assert found["weights"]["report"] == report
        assert found["weights"]["recorded"] == {
            "removed": sum(row["removed"] for row in report["matrices"]),
            "of": sum(row["weights"] for row in report["matrices"]),
            "matrices": len(report["matrices"]),
        }
        assert found["pruning"] is None
        assert len(found["blocks"]) == 4
        text = call("inspect", folder).stdout
        assert "Set to zero when the model was pruned: " in text
        assert "not pruned" not in text


@pytest.mark.parametrize("form", ["dense", "bitmask"])
def test_inspect_counts_zeros_without_a_report(
    sparse: dict[str, Path], form: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = answer(call, sparse[form])["weights"]
    folder = without_report(sparse[form], tmp_path)
    counted = answer(call, folder)["weights"]
    assert counted["recorded"] == written["recorded"]
    assert counted["report"]["parameters"] == written["report"]["parameters"]
    assert counted["report"]["strategy"] == written["report"]["strategy"]
    sizes = [{row["name"]: (row["weights"], row["removed"]) for row in side["report"]["matrices"]} for side in
             (counted, written)]  # fmt: skip
    assert sizes[0] == sizes[1]
    assert "Counted in the weight files" in call("inspect", folder).stderr
    monkeypatch.setattr(zeros_module, "MOST_BYTES", 1_000)
    assert answer(call, folder)["weights"] == {"recorded": written["recorded"], "report": None}
    assert "in 14 matrices (90.0 %)" in call("inspect", folder).stdout


def test_a_report_of_another_pruning_is_not_believed(sparse: dict[str, Path], tmp_path: Path, call: Call) -> None:
    folder = without_report(sparse["dense"], tmp_path)
    report = json.loads((sparse["dense"] / "pruning_report.json").read_text())
    truth = report["matrices"][0]["removed"]
    report["matrices"][0]["removed"] = 1
    (folder / "pruning_report.json").write_text(json.dumps(report))
    found = answer(call, folder)["weights"]["report"]
    assert found["notes"] == [found["notes"][0]]
    (row,) = [row for row in found["matrices"] if row["name"] == report["matrices"][0]["name"]]
    assert row["removed"] == truth


def test_layers_are_in_their_order(tmp_path: Path) -> None:
    names = [f"layer.{index}.weight" for index in (10, 9, 1)] + ["a.weight"]
    save_file({name: torch.zeros(2, 2) for name in names} | {"bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    rows = zeros_module.stored_zeros(str(tmp_path))
    assert rows is not None
    assert [row.name for row in rows] == ["a.weight", "layer.1.weight", "layer.9.weight", "layer.10.weight"]
    assert all((row.weights, row.removed) == (4, 4) for row in rows)


def test_a_damaged_weight_file(sparse: dict[str, Path], tmp_path: Path, call: Call) -> None:
    folder = without_report(sparse["dense"], tmp_path)
    (folder / "model.safetensors").write_bytes(b"not weights at all")
    result = call("inspect", folder)
    assert result.exit_code == 2
    assert "is damaged" in result.stderr


def test_a_model_that_lost_units_and_weights(models: dict[str, Path], tmp_path: Path, call: Call) -> None:
    model = BertForSequenceClassification.from_pretrained(models["classification"])
    prune_model(model, RandomPruningConfig(params=0.5, latency_batch_size=1))
    prune_model(model, MagnitudePruningConfig(sparsity=0.5)).save_pretrained(tmp_path)
    found = answer(call, tmp_path)
    assert found["weights"]["report"] == json.loads((tmp_path / "pruning_report.json").read_text())
    cut = {block["key"]: (block["kept_units"], block["dense_units"]) for block in found["pruning"]["blocks"]}
    assert any(kept < dense for kept, dense in cut.values())
    text = call("inspect", tmp_path).stdout
    assert "Kept: " in text
    assert "Set to zero when the model was pruned" in text
