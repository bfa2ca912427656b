"""Rows without labels, for whatever needs none."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from datasets import Dataset

from hf_prune import (
    FisherPruningConfig,
    HeadImportancePruningConfig,
    LayerDropPruningConfig,
    MagnitudePruningConfig,
    MovementPruningConfig,
    PruningConfig,
    RandomPruningConfig,
    SingleShotPruningConfig,
)
from tests.cli.rows import Call, sentence, write_tsv

SHORT = ("--max_seq_length", 16, "--round_to", 1, "--json")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A CSV file with nothing but sentences."""
    path = tmp_path / "texts.csv"
    with path.open("w", newline="", encoding="utf8") as file:
        csv.writer(file).writerows([["text"], *([sentence(index)] for index in range(48))])
    return path


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        (FisherPruningConfig(flops=0.5), False),
        (FisherPruningConfig(flops=0.5, labels="data"), True),
        (FisherPruningConfig(flops=0.5, labels="model"), False),
        (FisherPruningConfig(flops=0.5, importance="gradient"), True),
        (FisherPruningConfig(flops=0.5, importance="magnitude"), False),
        (FisherPruningConfig(flops=0.5, importance="magnitude", recovery="mask_tuning"), False),
        (FisherPruningConfig(flops=0.5, importance="magnitude", recovery="none", rearrange=False), False),
        (HeadImportancePruningConfig(heads=0.5), True),
        (LayerDropPruningConfig(layers=1, which="score"), False),
        (MagnitudePruningConfig(flops=0.5), False),
        (MovementPruningConfig(sparsity=0.5), True),
        (RandomPruningConfig(heads=0.5), False),
        (SingleShotPruningConfig(heads=0.5, pruner_name_or_path="pruner", input_type="single"), False),
    ],
)
def test_which_configurations_need_labels(config: PruningConfig, needed: bool) -> None:
    assert config.needs_labels is needed


@pytest.mark.parametrize(
    "settings",
    [
        ("--flops", 0.5),
        ("--flops", 0.5, "--labels", "model"),
        ("--flops", 0.5, "--labels", "model", "--importance", "after_refit"),
        ("--flops", 0.5, "--importance", "magnitude"),
        ("--strategy", "magnitude", "--flops", 0.5),
    ],
)
def test_run(settings: tuple[object, ...], models: dict[str, Path], texts: Path, tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "small"
    result = call(
        "run", models["classification"], "--train_file", texts, *settings, *SHORT, "--output_dir", folder
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)["report"]
    assert report["pruned"]["flops"] <= 0.5 * report["dense"]["flops"]
    assert report["metrics"] == {}
    assert "Calibrating on 48 of 48 rows" in result.stderr
    assert (folder / "model.safetensors").is_file()


def test_labels_are_there_for_the_evaluation(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    """Those of the calibration rows are not even looked at: a test split has -1 everywhere."""
    columns = {"sentence": [sentence(index) for index in range(48)], "label": [-1] * 48}
    train = write_tsv(tmp_path / "test.tsv", columns)
    result = call(
        "sweep", models["classification"], "--train_file", train, "--validation_file", sentences, "--labels", "model",
        "--budgets", "0.8,0.6", *SHORT, "--output_dir", tmp_path / "sweep",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    points = json.loads(result.stdout)["points"]
    assert [set(point["report"]["metrics"]["pruned"]) for point in points] == [{"loss", "accuracy"}] * 2


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        ("words", {"tokens": [sentence(index).split() for index in range(16)]}),
        ("questions", {"question": ["the dog is"] * 16, "context": [sentence(index) for index in range(16)]}),
        ("masks", {"text": [sentence(index) for index in range(16)]}),
    ],
)
def test_other_tasks(
    model: str, rows: dict[str, list[object]], models: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    Dataset.from_dict(rows).to_json(tmp_path / "rows.jsonl")
    result = call(
        "run", models[model], "--train_file", tmp_path / "rows.jsonl", "--flops", 0.5, "--labels", "model", *SHORT,
        "--output_dir", tmp_path / "small",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr


def test_a_split_without_labels_is_measured_on_only_if_that_is_asked_for(
    models: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        Dataset.from_dict({"text": [sentence(index) for index in range(24)]}).to_parquet(
            tmp_path / "data" / f"{split}.parquet"
        )
    asked = ("run", models["classification"], "--dataset_name", tmp_path / "data", "--flops", 0.5, "--labels", "model")
    result = call(*asked, *SHORT, "--output_dir", tmp_path / "small")
    assert result.exit_code == 0, result.stderr
    assert "No validation rows with labels" in result.stderr
    assert json.loads(result.stdout)["report"]["metrics"] == {}
    result = call(*asked, "--validation_split", "validation", *SHORT, "--output_dir", tmp_path / "other")
    assert result.exit_code == 2
    assert "None of label, labels, score is among the columns text. Name yours with --label_column." in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--labels", "data", "--train_file", "texts.csv"), "None of label, labels, score is among the columns text"),
        (("--labels", "data"), "Labelled rows are needed to calibrate on"),
        ((), "Error: Rows are needed to calibrate on"),
    ],
)
def test_what_is_missing(
    options: tuple[str, ...], message: str, models: dict[str, Path], texts: Path, tmp_path: Path, call: Call
) -> None:
    given = [texts if option == texts.name else option for option in options]
    result = call("run", models["classification"], *given, "--flops", 0.5, *SHORT, "--output_dir", tmp_path / "small")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "small").exists()
