from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizer,
    set_seed,
)
from typer.testing import CliRunner, Result

from hf_prune.cli import app
from tests.cli.rows import WORDS, Call, sentence, write_tsv

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = {"negative": 0, "positive": 1}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
HEADS = {
    "classification": BertForSequenceClassification,
    "regression": BertForSequenceClassification,
    "words": BertForTokenClassification,
    "questions": BertForQuestionAnswering,
    "masks": BertForMaskedLM,
}


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizer:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    return BertTokenizer(vocab=vocabulary, model_max_length=64)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizer) -> dict[str, Path]:
    """Checkpoints of tiny BERTs with their tokenizer, one per kind of head."""
    root = tmp_path_factory.mktemp("models")
    folders = {}
    for name, kind in HEADS.items():
        folders[name] = root / name
        set_seed(0)
        labels = (
            {"num_labels": 1}
            if name == "regression"
            else {"label2id": LABELS, "id2label": {0: "negative", 1: "positive"}}
        )
        model = kind(BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **SIZES, **labels))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """48 sentences with labels by name, as a TSV file."""
    labels = ["Positive" if index % 3 else "NEGATIVE" for index in range(48)]
    return write_tsv(tmp_path / "train.tsv", {"sentence": [sentence(i) for i in range(48)], "label": labels})


@pytest.fixture
def call() -> Call:
    """Runs `hf-prune` with some arguments; anything but an exit is raised."""

    def run(*arguments: Any) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
