from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification

from hf_prune import count_flops, describe_model
from hf_prune.surgery import PruningPlan, apply_plan, write_metadata
from tests.cli.rows import Call


@pytest.fixture(scope="module")
def pair(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense model, and the same with half of its filters and heads."""
    model = BertForSequenceClassification.from_pretrained(models["classification"])
    anatomy = describe_model(model)
    plan = PruningPlan({block.key: tuple(range(block.units // 2)) for block in anatomy.blocks})
    apply_plan(model, anatomy, plan)
    write_metadata(model, anatomy, plan, {"strategy": "fisher"}, {}, {})
    folder = tmp_path_factory.mktemp("half")
    model.save_pretrained(folder)
    return models["classification"], folder


def test_every_setting_is_measured_and_compared(pair: tuple[Path, Path], call: Call) -> None:
    threads = torch.get_num_threads()
    result = call(
        "bench", *pair, "--batch_sizes", "1,2", "--sequence_lengths", "8, 16", "--repeats", 1, "--threads", 1, "--json"
    )
    found = json.loads(result.stdout)
    assert torch.get_num_threads() == threads
    assert (found["threads"], found["device"], found["dtype"]) == (1, "cpu", "float32")
    rows = found["rows"]
    settings = [(row["sequence_length"], row["batch_size"], row["model"]) for row in rows]
    assert settings == [(length, batch, str(name)) for length in (8, 16) for batch in (1, 2) for name in pair]
    dense = count_flops(BertForSequenceClassification.from_pretrained(pair[0]), 16)
    small = count_flops(BertForSequenceClassification.from_pretrained(pair[1]), 16)
    assert [row["flops_ratio"] for row in rows[-2:]] == [1.0, pytest.approx(dense / small)]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["speedup"] == 1.0
        assert second["speedup"] == pytest.approx(first["seconds"] / second["seconds"])
        assert second["of_ideal"] == pytest.approx(second["speedup"] / second["flops_ratio"])


def test_the_table_names_models_and_conditions(pair: tuple[Path, Path], call: Call) -> None:
    result = call("bench", *pair, "--batch_sizes", "1", "--sequence_lengths", "8", "--repeats", 1)
    assert "speed-up" in result.stdout
    assert "2.00×" in result.stdout
    assert pair[1].name in result.stdout


def test_a_model_with_nothing_left_has_no_ideal(models: dict[str, Path], tmp_path: Path, call: Call) -> None:
    model = BertForSequenceClassification.from_pretrained(models["classification"])
    anatomy = describe_model(model)
    plan = PruningPlan({block.key: () for block in anatomy.blocks})
    apply_plan(model, anatomy, plan)
    write_metadata(model, anatomy, plan, {"strategy": "fisher"}, {}, {})
    model.save_pretrained(tmp_path)
    arguments = ("--batch_sizes", "1", "--sequence_lengths", "8", "--repeats", 1)
    rows = json.loads(call("bench", models["classification"], tmp_path, *arguments, "--json").stdout)["rows"]
    assert rows[1]["flops_ratio"] is rows[1]["of_ideal"] is None
    assert "–" in call("bench", models["classification"], tmp_path, *arguments).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch_sizes", "1,x"), "--batch_sizes 1,x: whole numbers above 0"),
        (("--sequence_lengths", "0"), "--sequence_lengths 0: whole numbers above 0"),
        (("--sequence_lengths", "65"), "sequence_length=65 exceeds the model's 64 positions"),
    ],
)
def test_bad_settings(models: dict[str, Path], call: Call, arguments: tuple[str, ...], message: str) -> None:
    result = call("bench", models["classification"], *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_model_named_twice(models: dict[str, Path], call: Call) -> None:
    result = call("bench", models["classification"], models["classification"])
    assert result.exit_code == 2
    assert "named twice" in result.stderr
