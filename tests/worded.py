"""Models whose words have names: a tokenizer for the small models' vocabulary, and labels to score words for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import BertTokenizer, PreTrainedModel

from tests.small_models import VOCABULARY, case
from tests.training.runs import bert

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY_LIST = [*SPECIAL, *(f"w{index}" for index in range(VOCABULARY - len(SPECIAL) - 5))]
VOCABULARY_LIST += ["terrible", "fine", "great", "yes", "no"]
MASK = VOCABULARY_LIST.index("[MASK]")
LABELS = {0: "negative", 1: "neutral", 2: "positive"}
WORDS = {"positive": "great", "negative": "terrible", "neutral": "fine"}
OTHER_WORDS = {"0": "no", "1": "w7", "2": "yes"}
ANSWERS = {"start": "yes", "end": "no"}


def ids_of(*words: str) -> list[int]:
    return [VOCABULARY_LIST.index(word) for word in words]


def save_tokenizer(folder: Path) -> str:
    BertTokenizer(vocab={word: index for index, word in enumerate(VOCABULARY_LIST)}).save_pretrained(folder)
    return str(folder)


def worded_bert(**changes: Any) -> PreTrainedModel:
    """A classifier with named labels."""
    return bert(id2label=LABELS, label2id={name: index for index, name in LABELS.items()}, **changes)


def answering_bert() -> PreTrainedModel:
    return case("bert", "answers").model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
