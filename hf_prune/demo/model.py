"""The demo's model: a small BERT and its tokenizer, both trained from scratch on the spot."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

MAXIMUM_TOKENS = 40

_SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
_TRAINING = {"num_train_epochs": 4, "per_device_train_batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 0.1}


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4000) -> PreTrainedTokenizerBase:
    """Train a lower-casing WordPiece tokenizer with BERT's special tokens; equal texts give equal vocabularies.

    Args:
        texts: what to learn the pieces from.
        vocab_size: number of pieces, special tokens included.
    """
    rows = list(texts)
    template = BertTokenizer()
    normalize = template.backend_tokenizer.normalizer.normalize_str
    characters = sorted({character for text in rows for character in normalize(text)} - {" "})
    # The trainer numbers continuation pieces in the order of a randomly seeded hash table and breaks ties between
    # merges by these numbers, so two runs differ. Naming the pieces of one character beforehand fixes their numbers.
    continuations = [f"##{character}" for character in characters]
    trained = template.train_new_from_iterator(rows, vocab_size, new_special_tokens=continuations, show_progress=False)
    return BertTokenizer(vocab=trained.get_vocab(), model_max_length=MAXIMUM_TOKENS)


def tokenize(dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Turn the columns `text` and `label` into a BERT's inputs (unpadded, at most 40 tokens) and `labels`."""
    splits = {}
    for name, split in dataset.items():
        inputs = tokenizer(list(split["text"]), truncation=True, max_length=MAXIMUM_TOKENS)
        splits[name] = Dataset.from_dict({**inputs, "labels": list(split["label"])})
    return DatasetDict(splits)


def train_classifier(
    dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> BertForSequenceClassification:
    """Train a BERT of 4 layers on the "train" split, on the CPU: 4 heads of 32 and 512 filters per layer.

    Args:
        dataset: as `hf_prune.demo.load_docstrings` returns it.
        tokenizer: as `train_tokenizer` returns it.
        seed: of the initial weights, the order of the rows and dropout.

    Returns:
        The model in eval mode, with the topics' names in its config.
    """
    set_seed(seed)
    model = _untrained(dataset["train"].features["label"].names, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            seed=seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            train_sampling_strategy="group_by_length",
            **_TRAINING,
        )
        trainer = Trainer(
            model,
            arguments,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=tokenize(dataset, tokenizer)["train"],
        )
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Bar)
        trainer.train()
    return model.eval()


def _untrained(names: list[str], tokenizer: PreTrainedTokenizerBase) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAXIMUM_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
        **_SIZES,
    )
    return BertForSequenceClassification(config)


class _Bar(ProgressCallback):
    """Trainer's progress bar, without the log lines it prints to standard output."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing: what the demo reports is measured afterwards."""
