"""A real model on real text: half the FLOPs, without training, still classifies."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, PreTrainedModel

from hf_prune import FisherPruningConfig, count_flops, prune_model


def sentences(path: Path, start: int, count: int) -> list[dict[str, str]]:
    with path.open(encoding="utf8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return rows[start : start + count]


def correct(model: PreTrainedModel, data: Dataset, collator: DataCollatorWithPadding) -> float:
    model.eval()
    hits = 0
    with torch.no_grad():
        for start in range(0, len(data), 50):
            batch = collator([data[index] for index in range(start, min(start + 50, len(data)))])
            labels = batch.pop("labels")
            hits += int((model(**batch).logits.argmax(1) == labels).sum())
    return hits / len(data)


@pytest.mark.real
def test_sentiment_at_half_the_flops(shared: Path, tmp_path: Path) -> None:
    name = shared / "models" / "minilm-sst2"
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32)
    collator = DataCollatorWithPadding(tokenizer)

    def tokenised(split: str, start: int, count: int) -> Dataset:
        rows = sentences(shared / "data" / "sst2" / f"{split}.tsv", start, count)
        encoded = tokenizer([row["sentence"] for row in rows], truncation=True, max_length=64)
        return Dataset.from_dict(dict(encoded) | {"label": [int(row["label"]) for row in rows]})

    train, dev = tokenised("train", 1000, 256), tokenised("dev", 0, 200)
    dense_accuracy, dense_flops = correct(model, dev, collator), count_flops(model, 25)
    assert dense_accuracy > 0.85
    config = FisherPruningConfig(flops=0.5, sequence_length=25, latency_batch_size=1)
    result = prune_model(model, config, train, data_collator=collator)
    assert count_flops(model, 25) <= 0.5 * dense_flops
    result.save_pretrained(tmp_path / "small", tokenizer=tokenizer)

    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert correct(loaded, dev, collator) > 0.75
    assert count_flops(loaded, 25) == result.report.pruned.flops
    batch = collator([dev[index] for index in range(8)])
    del batch["labels"]
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model.eval()(**batch).logits)
    size = (tmp_path / "small" / "config.json").stat().st_size
    assert size < 20_000
