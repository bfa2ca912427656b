from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, pipeline

from hf_prune.report import TradeOffCurve
from tests.cli.rows import Call, sentence, write_tsv

SHORT = ("--max_seq_length", "16", "--strategy", "magnitude")


def test_a_table_a_curve_and_the_models_that_were_asked_for(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    folder = tmp_path / "sweep"
    result = call(
        "sweep", models["classification"], "--train_file", sentences, "--validation_file", sentences, "--budgets",
        "0.4,0.8,0.6", "--save", "0.4,0.8", "--max_seq_length", 16, "--round_to", 1, "--recovery", "none",
        "--output_dir", folder,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "classification: fisher pruning" in result.stdout
    assert "on the front" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert [row[0] for row in rows if row[0] in ("dense", "0.8", "0.6", "0.4")] == ["dense", "0.8", "0.6", "0.4"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "flops-0.4", "flops-0.8", "pruning_curve.json", "pruning_curve.png",
    ]  # fmt: skip
    assert f"The model with flops=0.4 is in {folder / 'flops-0.4'}." in result.stderr
    curve = TradeOffCurve.load(folder)
    assert len(curve) == 4
    lines = sentences.read_text().splitlines()[1:]
    for place, name in ((1, "flops-0.8"), (3, "flops-0.4")):
        classify = pipeline("text-classification", str(folder / name))
        right = [classify(text)[0]["label"] == label.lower() for text, label in (line.split("\t") for line in lines)]
        assert curve[place].metrics["accuracy"] == pytest.approx(sum(right) / len(right))


def test_json_of_another_budget(models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "sweep"
    result = call(
        "sweep", models["classification"], "--train_file", sentences, *SHORT, "--budget", "params", "--budgets",
        "0.3,0.9", "--save_all", "--measure_latency", "--latency_batch_size", 2, "--output_dir", folder, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["keyword"], answer["metric"], answer["output_dir"]) == ("params", None, str(folder))
    assert [point["budget"] for point in answer["points"]] == [0.9, 0.3]
    for point in answer["points"]:
        assert point["folder"] == str(folder / f"params-{point['budget']}")
        assert point["on_front"] is None
        assert point["report"] == json.loads((Path(point["folder"]) / "pruning_report.json").read_text())
        assert point["report"]["pruned"]["latency"] > 0
        loaded = AutoModelForSequenceClassification.from_pretrained(point["folder"])
        assert loaded.num_parameters() == point["report"]["pruned"]["parameters"]
    assert not (folder / "pruning_curve.png").exists()


def test_of_several_metrics_the_first_counts(models: dict[str, Path], tmp_path: Path, call: Call) -> None:
    columns = {"score": [index % 6 for index in range(24)], "sentence": list(map(sentence, range(24)))}
    file = write_tsv(tmp_path / "rows.tsv", columns)
    result = call(
        "sweep", models["regression"], "--train_file", file, "--validation_file", file, *SHORT, "--budgets", "0.5,0.4",
        "--output_dir", tmp_path / "sweep", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["metric"] == "pearson"
    values = [point["report"]["metrics"]["pruned"]["pearson"] for point in answer["points"]]
    assert [point["on_front"] for point in answer["points"]] == [values[0] > values[1], True]


def test_the_metric_that_is_asked_for_decides(models: dict[str, Path], tmp_path: Path, call: Call) -> None:
    columns = {"score": [index % 6 for index in range(24)], "sentence": list(map(sentence, range(24)))}
    file = write_tsv(tmp_path / "rows.tsv", columns)
    asked = ("sweep", models["regression"], "--train_file", file, "--budgets", "0.6,0.5,0.3", "--max_seq_length", 16)
    asked += ("--recovery", "none", "--round_to", 1)
    fronts = {}
    for metric in ("pearson", "spearman", "loss"):
        result = call(
            *asked, "--validation_file", file, "--metric", metric, "--output_dir", tmp_path / metric, "--json"
        )
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert answer["metric"] == metric
        sign = -1 if metric == "loss" else 1
        values = [sign * point["report"]["metrics"]["pruned"][metric] for point in answer["points"]]
        fronts[metric] = [point["on_front"] for point in answer["points"]]
        assert fronts[metric] == [value > max(values[place + 1 :], default=-9e9) for place, value in enumerate(values)]
        assert (tmp_path / metric / "pruning_curve.png").is_file()
    assert len(set(map(tuple, fronts.values()))) > 1
    for options, found in ((("--validation_file", file), "(loss, pearson, spearman)"), ((), "(nothing)")):
        result = call(*asked, *options, "--metric", "accuracy", "--output_dir", tmp_path / "none")
        assert result.exit_code == 2
        assert f"metric='accuracy' is none of what the evaluation gives {found}" in result.stderr
        assert "Gate gradients" not in result.stderr
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save", "0.4"], "--save 0.4: 0.4 is none of --budgets 0.7,0.5,0.3."),
        (["--save", "0.7", "--save_all"], "--save 0.7 says nothing beside --save_all"),
        (["--budgets", "half"], "--budgets half: numbers with commas between are needed"),
        (["--budgets", "0.5,1.5"], "flops=1.5 must lie in (0, 1]"),
        (["--budget", "sparsity", "--strategy", "magnitude"], "sweep varies a budget of heads, filters or layers"),
        (["--budget", "heads"], "The 'fisher' strategy has no setting 'heads'"),
    ],
)
def test_refusals(
    options: list[str], message: str, models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    result = call(
        "sweep", models["classification"], "--train_file", sentences, "--output_dir", tmp_path / "sweep", *options
    )
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "sweep").exists()


def test_run_finds_the_smallest_model_that_keeps_the_accuracy(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    asked = ("run", models["classification"], "--train_file", sentences, "--max_metric_drop", 0.3, "--recovery", "none")
    result = call(*asked, "--output_dir", tmp_path / "small")
    assert result.exit_code == 2
    assert "there is nothing to measure it on" in result.stderr
    assert "--validation_file" in result.stderr
    assert "Calibrating" not in result.stderr
    result = call(*asked, "--validation_file", sentences, "--output_dir", tmp_path / "small", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)["report"]
    metrics = {side: values["accuracy"] for side, values in report["metrics"].items()}
    assert metrics["pruned"] >= metrics["dense"] - 0.3
    assert "With 48 evaluation examples a point of accuracy is 0.48 examples" in report["notes"][-1]
