from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForSequenceClassification, MambaConfig, MambaForCausalLM

from hf_prune import count_flops
from tests.cli.rows import Call


@pytest.fixture(scope="module")
def small(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of which two heads of the first layer and eight filters of the second are left."""
    from hf_prune import FisherPruningConfig, PruningResult, describe_model
    from hf_prune.report.build import block_reports, build_report, count_parameters
    from hf_prune.surgery import PruningPlan, apply_plan, write_metadata

    model = BertForSequenceClassification.from_pretrained(models["classification"])
    dense = count_parameters(model)
    anatomy, config = describe_model(model), FisherPruningConfig(flops=0.5)
    plan = PruningPlan({"encoder.layer.0.attention": (1, 3), "encoder.layer.1.intermediate": tuple(range(0, 48, 6))})
    apply_plan(model, anatomy, plan)
    report = build_report(
        model=model, config=config, blocks=block_reports(anatomy, plan, 16), sequence_length=16, dense_parameters=dense
    )
    write_metadata(model, anatomy, plan, config.to_dict(), {"sequence_length": 16}, {"dense": {"accuracy": 0.75}})
    folder = tmp_path_factory.mktemp("small")
    PruningResult(model, plan, report, config).save_pretrained(folder)
    return folder


def answer(call: Call, folder: Path) -> dict[str, Any]:
    result = call("inspect", folder, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def kept(inspection: dict[str, Any]) -> dict[str, Any]:
    return {block["key"]: block["kept"] for block in inspection["pruning"]["blocks"]}


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["pruning"].update(changes)
    file.write_text(json.dumps(config))


def test_a_pruned_checkpoint_with_its_report(small: Path, call: Call) -> None:
    found = answer(call, small)
    assert found["pruning"] == json.loads((small / "pruning_report.json").read_text())
    assert kept(found)["encoder.layer.1.intermediate"] == list(range(0, 48, 6))
    model = BertForSequenceClassification.from_pretrained(small)
    assert found["parameters"] == model.num_parameters()
    assert found["flops"] == count_flops(model, 128)
    text = call("inspect", small).stdout
    assert "□■□■" in text
    assert "encoder.layer.1.intermediate" in text


def test_weights_are_not_needed(small: Path, tmp_path: Path, call: Call) -> None:
    shutil.copy(small / "config.json", tmp_path)
    with_report, without = answer(call, small)["pruning"], answer(call, tmp_path)
    for size in ("dense", "pruned"):
        assert without["pruning"][size] == {**with_report[size], "latency": None}
    assert kept(without) == {
        "encoder.layer.0.attention": [1, 3],
        "encoder.layer.0.intermediate": list(range(48)),
        "encoder.layer.1.attention": [0, 1, 2, 3],
        "encoder.layer.1.intermediate": None,
    }
    assert without["pruning"]["metrics"] == {"dense": {"accuracy": 0.75}}
    result = call("inspect", tmp_path)
    assert "□■□■" in result.stdout
    assert "8 of 48" in result.stdout
    assert "Which filters stayed is in pruning_report.json" in result.stderr


def test_a_report_of_another_cut_is_not_believed(small: Path, tmp_path: Path, call: Call) -> None:
    shutil.copy(small / "config.json", tmp_path)
    report = json.loads((small / "pruning_report.json").read_text())
    block = report["blocks"][3]
    block["kept_units"], block["kept"] = 9, list(range(9))
    (tmp_path / "pruning_report.json").write_text(json.dumps(report))
    assert kept(answer(call, tmp_path))["encoder.layer.1.intermediate"] is None


def test_a_dense_model(models: dict[str, Path], call: Call) -> None:
    found = answer(call, models["classification"])
    assert found["pruning"] is None
    assert [block["units"] for block in found["blocks"]] == [4, 48, 4, 48]
    model = BertForSequenceClassification.from_pretrained(models["classification"])
    assert found["flops"] == count_flops(model, 128)
    assert found["parameters"] == model.num_parameters()
    text = call("inspect", models["classification"]).stdout
    assert "not pruned" in text
    assert "4 heads of 8" in text


def test_an_unsupported_family(tmp_path: Path, call: Call) -> None:
    MambaForCausalLM(MambaConfig(num_hidden_layers=1, hidden_size=8, vocab_size=10)).save_pretrained(tmp_path)
    result = call("inspect", tmp_path)
    assert result.exit_code == 2
    assert "'mamba'" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": {"encoder.layer.0.attention": {"kept": 9, "of": 4}}}, "keeps 9 of 4 units"),
        ({"format": 99}, "format 99"),
        ({"strategy": "fisher"}, "strategy must hold"),
        ({"metrics": {"dense": {"accuracy": "high"}}}, "accuracy must be a number"),
    ],
)
def test_metadata_that_cannot_be(
    small: Path, tmp_path: Path, call: Call, changes: dict[str, Any], message: str
) -> None:
    shutil.copy(small / "config.json", tmp_path)
    edit_config(tmp_path, **changes)
    result = call("inspect", tmp_path)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_length_that_cannot_be_is_replaced(small: Path, tmp_path: Path, call: Call) -> None:
    shutil.copy(small / "config.json", tmp_path)
    edit_config(tmp_path, cost={"sequence_length": "long"})
    assert answer(call, tmp_path)["pruning"]["sequence_length"] == 128


def test_a_report_that_is_not_json(small: Path, tmp_path: Path, call: Call) -> None:
    shutil.copy(small / "config.json", tmp_path)
    (tmp_path / "pruning_report.json").write_text("{")
    result = call("inspect", tmp_path)
    assert result.exit_code == 2
    assert "is not JSON" in result.stderr
