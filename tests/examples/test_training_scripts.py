"""The training scripts, run as a user would, on a tiny model and tiny files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from hf_prune.anatomy.matrices import choose_matrices
from hf_prune.config import PruningConfig
from tests.examples.conftest import EXAMPLES, RunScript

STEPS = ("--use_cpu", "--report_to", "none", "--logging_steps", 2, "--per_device_train_batch_size", 8)
MAGNITUDE = ("--strategy", "magnitude", "--sparsity", 0.5, "--frequency", 1)


def classify(run: RunScript, model: Path, rows: Path, output: Path, *options: object, steps: int = 6) -> None:
    files = ("--train_file", rows, "--validation_file", rows)
    names = ("--model_name_or_path", model, "--output_dir", output, "--max_steps", steps)
    run("text_classification.py", *names, *files, *STEPS, "--do_train", "--do_eval", *options)


def zeros(model: torch.nn.Module) -> dict[str, float]:
    """The share of zeros of every matrix of the layers and of the word embeddings."""
    matrices = choose_matrices(model, lambda names, default: set(default))
    return {
        matrix.name.removeprefix("bert."): float((matrix.parameter == 0).float().mean())
        for matrix in matrices
        if "pooler" not in matrix.name
    }


def test_a_classifier_is_pruned_while_it_is_fine_tuned(
    run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path
) -> None:
    classify(run_script, base_model, labelled, tmp_path / "out", *MAGNITUDE)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert set(zeros(model).values()) == {0.5}
    assert model.config.id2label == {0: "negative", 1: "positive"}
    metrics = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert 0 <= metrics["eval_accuracy"] <= 1
    report = json.loads((tmp_path / "out" / "pruning_report.json").read_text())
    assert report["metrics"]["pruned"] == {name: metrics[name] for name in ("eval_loss", "eval_accuracy")}
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_fine_tuned_model_keeps_its_names_for_numbers(
    run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path
) -> None:
    names = {0: "terrible", 1: "great"}
    fine_tuned = AutoModelForSequenceClassification.from_pretrained(base_model, id2label=names)
    fine_tuned.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(base_model).save_pretrained(tmp_path / "model")
    text = labelled.read_text().replace("\tnegative", "\t0").replace("\tpositive", "\t1")
    assert "\t0" in text
    (tmp_path / "numbers.tsv").write_text(text)
    classify(run_script, tmp_path / "model", tmp_path / "numbers.tsv", tmp_path / "out", *MAGNITUDE, steps=2)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.id2label == names


def test_without_a_strategy_nothing_is_pruned(
    run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path
) -> None:
    classify(run_script, base_model, labelled, tmp_path / "out", steps=1)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert max(zeros(model).values()) < 0.1
    assert not hasattr(model.config, "pruning")


def test_heads_and_filters_are_cut_out(run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path) -> None:
    options = ("--strategy", "magnitude", "--flops", 0.5, "--round_to", 1)
    classify(run_script, base_model, labelled, tmp_path / "out", *options)
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    dense = AutoModelForSequenceClassification.from_pretrained(base_model)
    assert small.num_parameters() < dense.num_parameters()


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path
) -> None:
    options = (*MAGNITUDE, "--save_steps", 2, "--resume_from_checkpoint", "last")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    classify(run_script, base_model, labelled, whole, *options)
    resumed.mkdir()
    (whole / "checkpoint-2").rename(resumed / "checkpoint-2")
    (resumed / "checkpoint-4").mkdir()  # one that was being written
    classify(run_script, base_model, labelled, resumed, *options)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    state = json.loads((resumed / "trainer_state.json").read_text())
    assert state["global_step"] == 6


STATIC = ("--strategy", "static_mask", "--sparsity", 0.5, "--end", 0.5)


def kept_weights_are_those_of(base: Path, masked: Path) -> bool:
    """Whether all parameters of the encoder are the base model's, but for zeros in the layers' matrices."""
    before = AutoModelForMaskedLM.from_pretrained(base).bert.state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(masked).bert.state_dict()
    shared = before.keys() & after.keys()
    assert any(name.startswith("encoder.layer.1.") for name in shared)
    matrices = {name for name in shared if name.startswith("encoder") and before[name].ndim == 2}
    return all(torch.equal(before[name], after[name]) for name in shared - matrices) and all(
        torch.equal(torch.where(after[name] == 0, 0, before[name]), after[name]) for name in matrices
    )


def test_a_static_mask_with_label_words_trains_no_weight(
    run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path
) -> None:
    words = ("--label_words", "negative=terrible,positive=great")
    classify(run_script, base_model, labelled, tmp_path / "out", *STATIC, *words, "--learning_rate", 1.0)
    assert kept_weights_are_those_of(base_model, tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    found = zeros(model)
    assert {found[name] for name in found if "layer" in name} == {0.5}
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    inputs = tokenizer(["a good film"], return_tensors="pt")
    embeddings = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(["terrible", "great"])]
    with torch.no_grad():
        wanted = model.base_model(**inputs).last_hidden_state[:, 0] @ embeddings.T
        assert torch.allclose(model(**inputs).logits, wanted, atol=1e-5)


def test_the_learning_rate_is_that_of_a_new_head_and_not_of_a_static_mask(
    run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("small", "large")]
    for folder, rate in zip(folders, (1e-6, 1e-1), strict=True):
        classify(run_script, base_model, labelled, folder, *STATIC, "--learning_rate", rate, steps=2)
        assert kept_weights_are_those_of(base_model, folder)
    small, large = (load_file(folder / "model.safetensors")["classifier.weight"] for folder in folders)
    assert (small - large).abs().max() > 0.05


def test_a_teacher_takes_part(run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path) -> None:
    teacher, alone, taught = (tmp_path / name for name in ("teacher", "alone", "taught"))
    classify(run_script, base_model, labelled, teacher, "--learning_rate", 1e-2, steps=2)
    classify(run_script, base_model, labelled, alone, *MAGNITUDE, steps=4)
    options = ("--teacher_name_or_path", teacher, "--teacher_temperature", 3, "--teacher_weight", 0.9)
    classify(run_script, base_model, labelled, taught, *MAGNITUDE, *options, "--save_steps", 2, steps=4)
    assert not same_models(alone, taught)
    state = json.loads((taught / "checkpoint-2" / "trainer_state.json").read_text())
    arguments = state["stateful_callbacks"]["PruningCallback"]["args"]
    assert {name: arguments[name] for name in ("teacher", "temperature", "teacher_weight")} == {
        "teacher": str(teacher),
        "temperature": 3,
        "teacher_weight": 0.9,
    }


def test_a_model_pruned_in_pre_training_keeps_its_zeros(
    run_script: RunScript, base_model: Path, labelled: Path, texts: Path, tmp_path: Path
) -> None:
    sparse, tuned = tmp_path / "sparse", tmp_path / "tuned"
    files = ("--train_file", texts, "--validation_file", texts, "--max_seq_length", 16)
    names = ("--model_name_or_path", base_model, "--output_dir", sparse, "--max_steps", 6)
    run_script("masked_lm.py", *names, *files, *STEPS, "--do_train", "--do_eval", *MAGNITUDE)
    before = AutoModelForMaskedLM.from_pretrained(sparse)
    assert set(zeros(before).values()) == {0.5}
    assert json.loads((sparse / "all_results.json").read_text())["eval_loss"] > 0
    classify(run_script, sparse, labelled, tuned, "--strategy", "hold", "--learning_rate", 1e-3)
    after = AutoModelForSequenceClassification.from_pretrained(tuned)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    one, other = before.get_parameter(name), after.get_parameter(name)
    assert torch.equal(one == 0, other == 0)
    assert not torch.equal(one, other)


def test_a_new_model_with_a_vocabulary_of_its_own(
    run_script: RunScript, base_model: Path, texts: Path, tmp_path: Path
) -> None:
    sizes = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=24"
    new = ("--tokenizer_name", base_model, "--vocabulary_size", 50, "--config_overrides", sizes)
    files = ("--train_file", texts, "--validation_file", texts, "--max_seq_length", 16, "--max_eval_samples", 5)
    options = (*new, *files, *STEPS, "--do_train", "--do_eval", "--max_steps", 2)
    losses = []
    for _ in range(2):
        run_script("masked_lm.py", *options, "--output_dir", tmp_path / "out")
        losses.append(json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_loss"])
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.config.hidden_size == 16
    assert model.config.vocab_size == 50
    assert losses[0] == losses[1]


@pytest.fixture
def without_dropout(base_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "without_dropout"
    shutil.copytree(base_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same_models(one: Path, other: Path) -> bool:
    """Whether two trainings agree but for rounding, and in every zero."""
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.allclose(left[name], right[name], atol=1e-5) for name in left) and all(
        torch.equal(left[name] == 0, right[name] == 0) for name in left
    )


def test_accumulated_batches_give_what_larger_batches_give(
    run_script: RunScript, without_dropout: Path, labelled: Path, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    classify(run_script, without_dropout, labelled, one, *MAGNITUDE)
    parts = ("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2)
    classify(run_script, without_dropout, labelled, other, *MAGNITUDE, *parts)
    assert same_models(one, other)


def test_two_processes_give_what_one_gives_with_the_same_total_batch(
    run_script: RunScript, without_dropout: Path, labelled: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    classify(run_script, without_dropout, labelled, one, *MAGNITUDE)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]

    def launch(name: str, *options: object) -> None:
        parts = ("--per_device_train_batch_size", 4)
        command = [*launcher, "--main_process_port", 0, EXAMPLES / name, *options, *parts]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        ended = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert ended.returncode == 0, ended.stderr[-3000:]

    classify(launch, without_dropout, labelled, two, *MAGNITUDE)
    assert same_models(one, two)
    metrics = [json.loads((folder / "all_results.json").read_text()) for folder in (one, two)]
    assert metrics[0]["epoch"] == metrics[1]["epoch"]
    assert metrics[0]["eval_loss"] == pytest.approx(metrics[1]["eval_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sparsity", 0.5), "need --strategy"),
        (("--teacher_name_or_path", "somewhere"), "add --strategy"),
        (("--strategy", "magnitude", "--sparsity", 0.5, "--teacher_weight", 1), "need --teacher_name"),
        (("--strategy", "magnitude", "--sparsity", 0.5, "--treshold", 0.1), "--treshold"),
        (("--strategy", "magnitude", "--sparsity", 1.5), r"sparsity=1\.5"),
        (("--strategy", "fisher", "--flops", 0.5), "prune_model"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        classify(run_script, base_model, labelled, tmp_path / "out", *options)


def test_pruning_without_training_is_refused(
    run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--do_train"):
        run_script(
            "text_classification.py",
            *("--model_name_or_path", base_model, "--train_file", labelled, "--output_dir", tmp_path, *MAGNITUDE),
        )


def test_the_help_of_a_strategy_lists_its_settings(run_script: RunScript, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_script("text_classification.py", "--strategy", "movement", "--help")
    printed = capsys.readouterr().out
    assert "--score_learning_rate" in printed
    assert "--label_column" in printed
    assert "--strategy" in printed


def test_a_setting_named_like_an_option_of_the_training_gets_its_value() -> None:
    from script_arguments import SourceArguments, parse_in_stages
    from transformers import TrainingArguments

    argv = ["--strategy", "random", "--sparsity", "0.5", "--seed", "7", "--output_dir", "out", "--train_file", "a.txt"]
    (_, training), config = parse_in_stages(argv, SourceArguments, TrainingArguments)
    assert isinstance(config, PruningConfig)
    assert (training.seed, config.seed) == (7, 7)
