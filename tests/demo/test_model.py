from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_prune.demo import TOPICS, tokenize, train_classifier, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(dataset: DatasetDict) -> PreTrainedTokenizerBase:
    return train_tokenizer(dataset["train"]["text"])


def test_equal_texts_give_equal_vocabularies(dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == 4000
    for _ in range(2):
        assert train_tokenizer(dataset["train"]["text"]).get_vocab() == tokenizer.get_vocab()


def test_tokenizer_has_only_berts_special_tokens_and_knows_the_text(
    dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert set(tokenizer.all_special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    pieces = tokenizer.tokenize("Serialisability of a connection")
    assert "[UNK]" not in pieces
    assert "".join(piece.removeprefix("##") for piece in pieces) == "serialisabilityofaconnection"
    assert tokenizer("a connection")["input_ids"][::3] == [tokenizer.cls_token_id, tokenizer.sep_token_id]


def test_tokenize_truncates_and_keeps_the_labels(dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = tokenize(dataset, tokenizer)
    assert set(rows["train"].column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert max(map(len, rows["train"]["input_ids"])) == 40
    assert list(rows["validation"]["labels"]) == list(dataset["validation"]["label"])


def test_training_is_deterministic_and_names_the_topics(
    dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase
) -> None:
    few = DatasetDict({"train": dataset["train"].select(range(96))})
    model, again, other = (train_classifier(few, tokenizer, seed=seed) for seed in (0, 0, 1))
    assert not model.training
    assert model.config.id2label == dict(enumerate(sorted(TOPICS)))
    assert model.config.label2id == {name: label for label, name in enumerate(sorted(TOPICS))}
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in again.state_dict().items())
    assert not torch.equal(weights["classifier.weight"], other.state_dict()["classifier.weight"])


@pytest.mark.slow
def test_the_trained_model_is_far_above_chance(
    dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = train_classifier(dataset, tokenizer)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Trainer(model, arguments, data_collator=DataCollatorWithPadding(tokenizer))
    prediction = trainer.predict(tokenize(dataset, tokenizer)["validation"])
    accuracy = (prediction.predictions.argmax(-1) == prediction.label_ids).mean()
    assert accuracy > 0.7
