from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from scipy import stats
from transformers import AutoModelForSequenceClassification, BertTokenizer, pipeline

from hf_prune import PruningResult
from hf_prune.commands import run as run_module
from hf_prune.commands.arguments import RunArguments
from hf_prune.recovery import reconstruction
from hf_prune.scores import gradient_rows
from tests.cli.rows import Call, sentence, write_tsv
from tests.failing import Failing

BUDGET = ("--flops", "0.5", "--max_seq_length", "16")


def test_a_pruned_classifier_can_be_used_by_a_pipeline(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    folder = tmp_path / "small"
    result = call(
        "run", models["classification"], "--train_file", sentences, "--validation_file", sentences,
        "--text_column", "sentence", "--label_column", "label", *BUDGET, "--output_dir", folder,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "FLOPs of attention and FFN" in result.stdout
    assert "accuracy" in result.stdout
    assert "Kept: " in result.stdout
    classify = pipeline("text-classification", str(folder))
    answers = classify([sentence(index) for index in range(4)])
    assert {answer["label"] for answer in answers} <= {"negative", "positive"}
    blocks = classify.model.config.pruning["blocks"]
    assert sum(block["kept"] for block in blocks.values()) < sum(block["of"] for block in blocks.values())


def test_accuracy_is_that_of_the_written_model(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    folder = tmp_path / "small"
    result = call(
        "run", models["classification"], "--train_file", sentences, "--validation_file", sentences, *BUDGET,
        "--output_dir", folder, "--json",
    )  # fmt: skip
    metrics = json.loads(result.stdout)["report"]["metrics"]
    for name, path in (("dense", models["classification"]), ("pruned", folder)):
        classify = pipeline("text-classification", str(path))
        rows = [line.split("\t") for line in sentences.read_text().splitlines()[1:]]
        right = [classify(text)[0]["label"] == label.lower() for text, label in rows]
        assert metrics[name]["accuracy"] == pytest.approx(np.mean(right))


def test_a_regression_on_pairs_reports_correlations(
    models: dict[str, Path], tokenizer: BertTokenizer, tmp_path: Path, call: Call
) -> None:
    firsts, seconds = ([sentence(index + shift) for index in range(40)] for shift in (0, 7))
    scores = [index % 6 for index in range(40)]
    file = write_tsv(tmp_path / "pairs.tsv", {"score": scores, "sentence1": firsts, "sentence2": seconds})
    folder = tmp_path / "small"
    result = call(
        "run", models["regression"], "--train_file", file, "--validation_file", file, "--params", "0.6",
        "--output_dir", folder, "--json",
    )  # fmt: skip
    metrics = json.loads(result.stdout)["report"]["metrics"]["pruned"]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        values = model(**tokenizer(firsts, seconds, padding=True, return_tensors="pt")).logits[:, 0].numpy()
    assert metrics["pearson"] == pytest.approx(stats.pearsonr(values, scores).statistic, abs=1e-4)
    assert metrics["spearman"] == pytest.approx(stats.spearmanr(values, scores).statistic, abs=1e-4)


def test_json_is_all_that_goes_to_standard_output(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    folder = tmp_path / "small"
    result = call("run", models["classification"], "--train_file", sentences, *BUDGET, "--output_dir", folder, "--json")
    answer = json.loads(result.stdout)
    assert answer["output_dir"] == str(folder)
    assert answer["report"] == json.loads((folder / "pruning_report.json").read_text())
    assert answer["report"]["pruned"]["flops"] <= 0.5 * answer["report"]["dense"]["flops"]
    assert "Calibrating on 48 of 48 rows (text-classification)." in result.stderr


@pytest.mark.parametrize(
    ("model", "rows", "metric"),
    [
        ("words", {"tokens": ["the dog runs", "a cat"] * 12, "ner_tags": ["0 1 0", "1 0"] * 12}, "accuracy"),
        ("masks", {"text": [sentence(index) for index in range(24)]}, "loss"),
        (
            "questions",
            {
                "question": ["the dog is"] * 24,
                "context": ["the dog runs on"] * 24,
                "answers": [{"text": ["runs"], "answer_start": [8]}] * 24,
            },
            "exact_span",
        ),
    ],
)
def test_other_tasks(
    models: dict[str, Path], tmp_path: Path, call: Call, model: str, rows: dict[str, list[object]], metric: str
) -> None:
    file = tmp_path / "rows.jsonl"
    Dataset.from_dict(rows).to_json(file)
    folder = tmp_path / "small"
    result = call(
        "run", models[model], "--train_file", file, "--validation_file", file, "--flops", 0.5, "--output_dir", folder,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert metric in json.loads(result.stdout)["report"]["metrics"]["pruned"]
    assert (folder / "model.safetensors").is_file()


def test_a_data_set_by_name(models: dict[str, Path], tmp_path: Path, call: Call) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 32), ("validation", 16)):
        rows = {"text": [sentence(i) for i in range(count)], "label": [i % 2 for i in range(count)]}
        Dataset.from_dict(rows).to_parquet(data / f"{split}.parquet")
    result = call(
        "run", models["classification"], "--dataset_name", data, *BUDGET, "--num_samples", 20, "--max_eval_samples", 8,
        "--output_dir", tmp_path / "small", "--json",
    )  # fmt: skip
    assert "Calibrating on 20 of 32 rows" in result.stderr
    accuracy = json.loads(result.stdout)["report"]["metrics"]["dense"]["accuracy"]
    assert accuracy * 8 == pytest.approx(round(accuracy * 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text_column", "review"), "no column 'review' among sentence, label"),
        (("--label_column", "sentence"), "which the model does not know; it knows 'negative', 'positive'"),
        (("--flops", "0.6", "--params", "0.5"), "exactly one budget"),
        (("--flops", "1.5"), r"flops=1.5 must lie in (0, 1]"),
        (("--strategy", "fischer"), "did you mean 'fisher'?"),
        (("--task", "translation"), "Unknown task 'translation'"),
        (("--max_seq_length", "65"), "--max_seq_length 65 exceeds the model's 64 positions"),
        (("--num_samples", "0"), "--num_samples 0 must be at least 1"),
        (("--dtype", "int8"), "dtype='int8' is unknown"),
        (("--device", "toaster"), "device='toaster' cannot be used here"),
        (("--importance", "beauty"), "importance='beauty' is unknown"),
        (("--validation_file", "absent.tsv"), "There is no file absent.tsv"),
        (("--dataset_name", "someone/data"), "exclude each other"),
    ],
)
def test_bad_requests_end_with_one_line_and_no_folder(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call, arguments: tuple[str, ...], message: str
) -> None:
    budget = () if "--flops" in arguments else ("--flops", "0.5")
    folder = tmp_path / "small"
    result = call(
        "run", models["classification"], "--train_file", sentences, *budget, "--output_dir", folder, *arguments
    )
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert set(tmp_path.iterdir()) == {sentences}


def test_debug_shows_where_an_error_came_from(models: dict[str, Path], tmp_path: Path, call: Call) -> None:
    with pytest.raises(ValueError, match="There is no file"):
        call(
            "run", models["classification"], "--train_file", tmp_path / "absent.tsv", "--flops", 0.5,
            "--output_dir", tmp_path / "small", "--debug",
        )  # fmt: skip


def test_a_model_that_is_not_there(sentences: Path, tmp_path: Path, call: Call) -> None:
    absent = tmp_path / "absent"
    result = call("run", absent, "--train_file", sentences, "--flops", 0.5, "--output_dir", tmp_path / "small")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"Error: There is no folder {absent}."


def test_several_processes_are_refused(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = tmp_path / "small"
    result = call(
        "run", models["classification"], "--train_file", sentences, *BUDGET, "--output_dir", folder,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "one process, and this is one of 2" in result.stderr
    assert not folder.exists()


def test_a_folder_with_files_is_refused_before_any_work(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "thesis.txt").write_text("two years of work")
    arguments = ("run", models["classification"], "--train_file", sentences, *BUDGET, "--output_dir", folder)
    refused = call(*arguments)
    assert refused.exit_code == 2
    assert "is not empty" in refused.stderr
    assert "Calibrating" not in refused.stderr
    assert [file.name for file in folder.iterdir()] == ["thesis.txt"]
    assert call(*arguments, "--overwrite_output_dir").exit_code == 0
    assert (folder / "thesis.txt").read_text() == "two years of work"
    assert (folder / "config.json").is_file()


def test_the_dense_models_own_folder_is_never_an_output(models: dict[str, Path], sentences: Path, call: Call) -> None:
    model = models["classification"]
    before = {file: file.read_bytes() for file in model.iterdir()}
    result = call(
        "run", model, "--train_file", sentences, *BUDGET, "--output_dir", model / ".." / model.name,
        "--overwrite_output_dir",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "is the dense model's own folder" in result.stderr
    assert {file: file.read_bytes() for file in model.iterdir()} == before


def test_a_run_that_breaks_off_leaves_no_folder(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr("hf_prune.report.result.pruned_model_card", interrupted)
    with pytest.raises(RuntimeError, match="on fire"):
        call(
            "run", models["classification"], "--train_file", sentences, *BUDGET, "--output_dir", tmp_path / "small"
        )  # fmt: skip
    assert set(tmp_path.iterdir()) == {sentences}


def test_a_checkpoint_without_a_head_is_warned_of(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    result = call(
        "run", models["masks"], "--task", "text-classification", "--train_file", sentences, *BUDGET,
        "--output_dir", tmp_path / "small",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "no weights for" in result.stderr
    assert "classifier.weight" in result.stderr


def test_a_folder_without_a_tokenizer_is_refused(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call
) -> None:
    bare = tmp_path / "bare"
    AutoModelForSequenceClassification.from_pretrained(models["classification"]).save_pretrained(bare)
    result = call("run", bare, "--train_file", sentences, *BUDGET, "--output_dir", tmp_path / "small")
    assert result.exit_code == 2
    assert "holds no tokenizer" in result.stderr


def test_an_upload_that_fails_says_where_the_model_is(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: PruningResult, repository: str, **kwargs: object) -> str:
        raise ConnectionError(f"no way to {repository}")

    monkeypatch.setattr(PruningResult, "push_to_hub", refused)
    folder = tmp_path / "small"
    result = call(
        "run", models["classification"], "--train_file", sentences, *BUDGET, "--output_dir", folder,
        "--push_to_hub", "me/small",
    )  # fmt: skip
    assert result.exit_code == 2
    assert f"The pruned model is in {folder}, but it could not be uploaded" in result.stderr
    assert (folder / "model.safetensors").is_file()


def test_settings_of_the_strategy_arrive(models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call) -> None:
    result = call(
        "run", models["classification"], "--train_file", sentences, *BUDGET, "--output_dir", tmp_path / "small",
        "--recovery", "none", "--no_rearrange", "--uniform", "--round_to", 2, "--labels", "model",
        "--exclude_modules", "layer.0.attention", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)["report"]
    given = {"recovery": "none", "rearrange": False, "uniform": True, "round_to": 2, "labels": "model"}
    assert given.items() <= report["strategy"].items()
    assert report["blocks"][0]["kept_units"] == report["blocks"][0]["dense_units"]


def test_output_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match="no permission to write in"):
        run_module.check_output_folder(RunArguments(tmp_path / "deep" / "small"), "some/model")


def test_an_interrupted_run(
    models: dict[str, Path], sentences: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on; others say what there is."""
    folder = tmp_path / "small"
    command = ("run", models["classification"], "--train_file", sentences, *BUDGET, "--output_dir", folder)
    with monkeypatch.context() as patch:
        patch.setattr(reconstruction, "find_targets", Failing(reconstruction.find_targets, 0, RuntimeError))
        with pytest.raises(RuntimeError):
            call(*command, "--resume")
    assert [file.name for file in folder.iterdir()] == ["unfinished_run"]
    for other, words in (
        (command, "holds an unfinished run: add --resume"),
        ((*command, "--resume", "--num_samples", "16"), "interrupted run on something else. data: batch 0"),
    ):
        result = call(*other)
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.split())
    monkeypatch.setattr(gradient_rows, "iterate_gradients", lambda *given: (given for _ in ()))
    assert call(*command, "--resume").exit_code == 0
    assert not (folder / "unfinished_run").exists()
    monkeypatch.undo()
    command = (*command[:-1], tmp_path / "whole")
    assert call(*command).exit_code == 0
    resumed, whole = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "whole"))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
