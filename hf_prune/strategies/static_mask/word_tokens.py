"""Which tokens label words are, and which label each belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from ...errors import PruningError

ANSWER_LABELS = ("start", "end")


@dataclass(frozen=True)
class WordTokens:
    """Label words as ids.

    Attributes:
        ids: by label, as in the settings.
        mask_token: id of the tokenizer's mask token, if it has one.
    """

    ids: Mapping[str, int]
    mask_token: int | None


def find_tokens(model: PreTrainedModel, words: Mapping[str, str], tokenizer_name: str | None) -> WordTokens:
    """Looks label words up in a tokenizer.

    Args:
        model: whose tokenizer it is where no other is named.
        words: by label.
        tokenizer_name: name or folder.

    Raises:
        PruningError: there is no tokenizer, or a word is not one token.
    """
    name = tokenizer_name or model.name_or_path
    if not name:
        raise PruningError("The model does not say where its tokenizer is; name it with label_word_tokenizer.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise PruningError(
            f"No tokenizer for label_words can be read from {name!r}: {error} Name one with label_word_tokenizer."
        ) from error
    ids = {label: _single_token(tokenizer, name, word) for label, word in words.items()}
    return WordTokens(ids, tokenizer.mask_token_id)


def _single_token(tokenizer: Any, name: str, word: str) -> int:
    """The id of a word, as it is within a sentence if the tokenizer makes a difference."""
    for text in (f" {word}", word):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(word, add_special_tokens=False))
    raise PruningError(
        f"The label word {word!r} must be one token, but the tokenizer of {name} makes {tokens} of it. Choose a word"
        " that is in its vocabulary."
    )


def keys_in_order(model: PreTrainedModel, task: str, given: Mapping[str, Any]) -> list[str]:
    """The labels that label words are given for, in the order of the logits.

    They are called as in the model's `id2label` or by their numbers; a single one, of a regression, may be called
    anything.

    Raises:
        PruningError: a label has no word, or there is no such label.
    """
    numbers = [str(index) for index in range(model.config.num_labels)]
    names = ANSWER_LABELS if task == "answers" else [str(model.config.id2label[int(number)]) for number in numbers]
    if len(names) == 1 and len(given) == 1:
        return list(given)
    wanted: Sequence[str] = numbers if set(given) <= set(numbers) and not set(given) & set(names) else names
    missing = [label for label in wanted if label not in given]
    unknown = [label for label in given if label not in wanted]
    if missing or unknown:
        problem = f"no word for {missing[0]!r}" if missing else f"a word for {unknown[0]!r}, which is no label"
        raise PruningError(f"label_words have {problem}; the model's labels are {', '.join(map(repr, names))}.")
    return list(wanted)
