"""The recovery script, run as a user would, on a tiny model and tiny files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, pipeline

from hf_prune import MagnitudePruningConfig, prune_model
from tests.examples.conftest import RunScript


@pytest.mark.parametrize(("rank", "told"), [(2, True), (0, True), (2, False)])
def test_a_pruned_classifier_learns_from_the_dense_one(
    rank: int, told: bool, run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path
) -> None:
    labels = {"label2id": {"negative": 0, "positive": 1}, "id2label": {0: "negative", 1: "positive"}}
    dense = BertForSequenceClassification.from_pretrained(base_model, **labels)
    with torch.no_grad():
        dense.classifier.bias.add_(0.1)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    for folder in ("dense", "small"):
        if folder == "small":
            prune_model(dense, MagnitudePruningConfig(flops=0.5, round_to=1, latency_batch_size=2))
        dense.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    train, weight = labelled, 0.5
    if not told:  # the teacher says it all
        train, weight = tmp_path / "texts.tsv", 1.0
        header, *lines = [line.split("\t") for line in labelled.read_text().splitlines()]
        column = header.index("sentence")
        train.write_text("\n".join(row[column] for row in (header, *lines)) + "\n")
    run_script(
        "recover.py", "--model_name_or_path", tmp_path / "small", "--teacher_name_or_path", tmp_path / "dense",
        "--train_file", train, "--validation_file", labelled, "--text_column", "sentence", "--lora_rank", rank,
        "--output_dir", tmp_path / "out", "--max_steps", 3, "--learning_rate", 1e-2, "--use_cpu", "--report_to", "none",
        "--save_strategy", "no", "--hidden_weight", 0.5, "--teacher_weight", weight,
    )  # fmt: skip
    small, found = (AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("small", "out"))
    assert found.config.pruning["blocks"] == small.config.pruning["blocks"]
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (small, found)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(
        small.bert.encoder.layer[1].output.dense.weight, found.bert.encoder.layer[1].output.dense.weight
    )
    assert torch.equal(small.classifier.weight, found.classifier.weight) is (rank > 0)
    metrics = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert metrics == found.config.pruning["metrics"]
    assert 0 <= metrics["pruned"]["accuracy"] <= 1
    [answer] = pipeline("text-classification", str(tmp_path / "out"))("a good film")
    assert answer["label"] in ("negative", "positive")
