"""The settings of Static Model Pruning, which its strategy and its PEFT method share."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ...errors import PruningError
from ...setting_checks import check_choices, check_not_negative, check_positive, check_sparsity, check_unused

MASKINGS = ("local", "score", "global")
SCHEDULES = {"cubic": 3, "linear": 1}
LABEL_WORD_HEADS = ("embeddings", "mlm")
_LOW_SPARSITY = 0.3


@dataclass
class StaticMaskSettings:
    """What a static mask is and how it learns (Jiang et al. 2023)."""

    sparsity: float | None = field(
        default=None, metadata={"help": "Fraction of single weights to remove, at least 0 and below 1."}
    )
    masking: str = field(
        default="local",
        metadata={
            "help": "Where weights compete: 'local' (every matrix loses the same fraction), 'score' (a kind of matrix"
            " loses it over all layers, which share it in proportion to their mean scores) or 'global'.",
        },
    )
    temperature: float | None = field(
        default=None,
        metadata={
            "help": "masking='score': the larger, the more alike the layers. Default: 4 up to a sparsity of 0.3, 1"
            " above, as the authors have it.",
        },
    )
    schedule: str = field(
        default="cubic", metadata={"help": "How the sparsity rises from begin to end: 'cubic' or 'linear'."}
    )
    begin: float = field(
        default=0.0,
        metadata={
            "help": "When pruning begins: up to 1 it is a fraction of the training, above 1 a number of steps.",
        },
    )
    end: float = field(
        default=0.6,
        metadata={"help": "When what was asked for is reached, written like begin; if equal, at one go."},
    )
    frequency: int = field(default=1, metadata={"help": "Optimizer steps between two choices of what is removed."})
    regularization: float = field(
        default=400.0,
        metadata={"help": "Factor of the scores' mean sigmoid in the loss; rises from 0 over the training."},
    )
    score_learning_rate: float = field(default=2e-2, metadata={"help": "Of the scores; falls linearly to zero."})
    magnitude_prior: float = field(
        default=10.0,
        metadata={
            "help": "Weights are ranked by score + this · |w| / σ(W), so that what is small goes first while the scores"
            " have learnt little; 0 is the paper's, for long trainings."
        },
    )
    label_words: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Instead of training the head: a word for every label, whose score is the label's, as"
            " 'positive=great,negative=terrible' or JSON. For question answering the labels are 'start' and 'end'."
        },
    )
    label_word_head: str = field(
        default="embeddings",
        metadata={
            "help": "What scores label words: 'embeddings' (the model's own word embeddings, at the first token) or"
            " 'mlm' (the head of the masked language model, at the mask token where a text has one)."
        },
    )
    label_word_model: str | None = field(
        default=None,
        metadata={"help": "label_word_head='mlm': name or folder of that model. Default: the model's own."},
    )
    label_word_tokenizer: str | None = field(
        default=None, metadata={"help": "Name or folder of the tokenizer for label_words. Default: the model's own."}
    )

    @property
    def score_temperature(self) -> float:
        """The temperature of `masking="score"`."""
        if self.temperature is not None:
            return self.temperature
        return 4.0 if (self.sparsity or 0.0) <= _LOW_SPARSITY else 1.0

    @property
    def power(self) -> int:
        """The power of the schedule's curve."""
        return SCHEDULES[self.schedule]


def check_static_settings(settings: Any) -> None:
    """Raises a PruningError where a setting of its own is out of range; when pruning happens is checked elsewhere.

    Label words that are given as a text become a dictionary.
    """
    check_sparsity(settings, "sparsity")
    check_choices(settings, masking=MASKINGS, schedule=SCHEDULES)
    check_not_negative(settings, "regularization", "score_learning_rate", "magnitude_prior")
    if settings.temperature is not None:
        check_positive(settings, "temperature")
    if settings.masking != "score":
        check_unused(settings, f"with masking={settings.masking!r}: use masking='score'", "temperature")
    _check_label_words(settings)


def _check_label_words(settings: Any) -> None:
    """The words by label, and nothing about them where there are none."""
    settings.label_words = read_label_words(settings.label_words)
    check_choices(settings, label_word_head=LABEL_WORD_HEADS)
    by_model = settings.label_word_head == "mlm"
    given = {
        "label_word_head": "mlm" if by_model else None,
        "label_word_model": settings.label_word_model,
        "label_word_tokenizer": settings.label_word_tokenizer,
    }
    for name, value in given.items():
        if value is not None and (settings.label_words is None or not isinstance(value, str)):
            raise PruningError(f"{name}={value!r} must be a text, and is about label_words: give these, too.")
    if settings.label_word_model is not None and not by_model:
        raise PruningError(f"label_word_model={settings.label_word_model!r} needs label_word_head='mlm'.")


def read_label_words(value: Any) -> dict[str, str] | None:
    """Label words by label, from a dictionary, its JSON, or 'label=word,label=word'.

    Raises:
        PruningError: it is none of these, or empty.
    """
    if value is None:
        return None
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value) if value.lstrip().startswith("{") else _read_pairs(value)
        except ValueError:
            found = None
    if (
        isinstance(found, dict)
        and found
        and all(isinstance(part, str) and part for item in found.items() for part in item)
    ):
        return dict(found)
    raise PruningError(
        f"label_words={value!r} must be a word for every label: {{'positive': 'great', 'negative': 'terrible'}}, or as"
        " text 'positive=great,negative=terrible'."
    )


def _read_pairs(text: str) -> dict[str, str]:
    pairs = [part.split("=") for part in text.split(",")]
    found = {label.strip(): word.strip() for label, word in pairs}
    if len(found) < len(pairs):
        raise ValueError("a label is there twice")
    return found
