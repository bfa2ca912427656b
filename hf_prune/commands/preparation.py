"""Turns a data set's rows into a model's inputs and labels, for each task that `hf-prune run` knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from ..errors import PruningError
from .arguments import DataArguments
from .columns import LABEL_COLUMNS, TAG_COLUMNS, WORD_COLUMNS, choose, text_columns, texts_of
from .labels import LabelMap, listed, regression_targets
from .metrics import IGNORED

MASKED_SHARE = 0.15
_ROWS_PER_CALL = 1000


@dataclass(frozen=True)
class Preparation:
    """What preparing rows needs to know.

    Attributes:
        tokenizer: the model's.
        config: the model's.
        max_length: tokens per example, longer ones are cut.
        data: what the user said about the columns.
        seed: of whatever is drawn.
        labelled: whether labels are read; language models' are the texts themselves, and there in any case.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    max_length: int
    data: DataArguments
    seed: int = 0
    labelled: bool = True

    def encode(self, *texts: list[Any], **settings: Any) -> Iterator[Any]:
        """The tokenizer's output for parallel lists of texts (or words), some rows at a time, with a progress bar."""
        settings = {"truncation": True, "max_length": self.max_length, **settings}
        for start in tqdm(range(0, len(texts[0]), _ROWS_PER_CALL), desc="Tokenise", disable=len(texts[0]) < 5000):
            yield self.tokenizer(*(column[start : start + _ROWS_PER_CALL] for column in texts), **settings)


def text_classification(rows: Dataset, how: Preparation) -> Dataset:
    """Texts or pairs of texts with a class, or with a number where the model is a regression."""
    if how.config.problem_type == "multi_label_classification":
        raise PruningError(
            "Models with several labels per text are not prepared by this command; tokenise the data and call"
            " hf_prune.prune_model in Python."
        )
    first, second = text_columns(rows, how.data)
    labels = {"labels": _text_labels(rows, how)} if how.labelled else {}
    texts = [texts_of(rows, column) for column in (first, second) if column is not None]
    return Dataset.from_dict({**_joined(how.encode(*texts)), **labels})


def token_classification(rows: Dataset, how: Preparation) -> Dataset:
    """Words with a tag each (lists, or strings with spaces between); the first token of a word carries its tag."""
    word_column = choose(rows, how.data.text_column, "text_column", WORD_COLUMNS)
    words = [listed(value) for value in rows[word_column]]
    tags = _tag_ids(rows, word_column, words, how) if how.labelled else None
    outputs = list(how.encode(words, is_split_into_words=True))
    if tags is None:
        return Dataset.from_dict(_joined(outputs))
    word_ids = [output.word_ids(index) for output in outputs for index in range(len(output["input_ids"]))]
    labels = [_first_token_labels(ids, row_tags) for ids, row_tags in zip(word_ids, tags, strict=True)]
    return Dataset.from_dict({**_joined(outputs), "labels": labels})


def question_answering(rows: Dataset, how: Preparation) -> Dataset:
    """Questions with a context and the answer's place in it, as SQuAD has them.

    A context that is too long is cut at its end. Where the answer is cut off, or there is none, its place is the
    first token, as for unanswerable questions.
    """
    needed = ("question", "context", "answers") if how.labelled else ("question", "context")
    missing = [column for column in needed if column not in rows.column_names]
    if missing:
        raise PruningError(
            f"Question answering needs the columns {', '.join(needed)}, as SQuAD has them; {', '.join(missing)} is not"
            f" among {', '.join(rows.column_names)}."
        )
    texts = texts_of(rows, "question"), texts_of(rows, "context")
    outputs = list(how.encode(*texts, truncation="only_second", return_offsets_mapping=how.labelled))
    if not how.labelled:
        return Dataset.from_dict(_joined(outputs))
    answers = _answers_of(rows)
    spans: list[tuple[int, int]] = []
    for output in outputs:
        for index, offsets in enumerate(output.pop("offset_mapping")):
            spans.append(_answer_tokens(answers[len(spans)], offsets, output.sequence_ids(index)))
    starts, ends = zip(*spans, strict=True)
    return Dataset.from_dict({**_joined(outputs), "start_positions": starts, "end_positions": ends})


def masked_language_model(rows: Dataset, how: Preparation) -> Dataset:
    """Texts in which 15 % of the tokens are to be guessed, as in BERT's training.

    The tokens are chosen once, so that every pass over the data, before and after, sees the same ones.
    """
    if how.tokenizer.mask_token_id is None:
        raise PruningError(f"{type(how.tokenizer).__name__} has no mask token, which this task needs.")
    column = text_columns(rows, how.data)[0]
    encoded = _joined(how.encode(texts_of(rows, column), return_special_tokens_mask=True))
    generator = np.random.default_rng(how.seed)
    special = encoded.pop("special_tokens_mask")
    masked = [
        _mask(np.asarray(ids), np.flatnonzero(np.asarray(flags) == 0), how.tokenizer, generator)
        for ids, flags in zip(encoded["input_ids"], special, strict=True)
    ]
    encoded["input_ids"], encoded["labels"] = [ids for ids, _ in masked], [labels for _, labels in masked]
    return Dataset.from_dict(encoded).select([row for row, (_, labels) in enumerate(masked) if max(labels) != IGNORED])


def causal_language_model(rows: Dataset, how: Preparation) -> Dataset:
    """Texts whose every next token is to be guessed."""
    encoded = _joined(how.encode(texts_of(rows, text_columns(rows, how.data)[0])))
    dataset = Dataset.from_dict({**encoded, "labels": [list(ids) for ids in encoded["input_ids"]]})
    return dataset.select([row for row, ids in enumerate(encoded["input_ids"]) if len(ids) > 1])


def _text_labels(rows: Dataset, how: Preparation) -> list[Any]:
    column = choose(rows, how.data.label_column, "label_column", LABEL_COLUMNS)
    if how.config.num_labels == 1:
        return regression_targets(rows, column)
    return LabelMap(rows, column, how.config).ids(rows[column])


def _tag_ids(rows: Dataset, word_column: str, words: list[list[Any]], how: Preparation) -> list[list[int]]:
    """A class id for every word of every row."""
    column = choose(rows, how.data.label_column, "label_column", TAG_COLUMNS)
    tags = [listed(value) for value in rows[column]]
    for number, (row_words, row_tags) in enumerate(zip(words, tags, strict=True), 1):
        if len(row_words) != len(row_tags) or not row_words:
            raise PruningError(
                f"Row {number} has {len(row_words)} words in {word_column!r} and {len(row_tags)} tags in"
                f" {column!r}; every word needs a tag."
            )
    ids = iter(LabelMap(rows, column, how.config).ids([tag for row in tags for tag in row]))
    return [[next(ids) for _ in row] for row in tags]


def _joined(outputs: Any) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for output in outputs:
        for name, values in output.items():
            columns.setdefault(name, []).extend(values)
    return columns


def _first_token_labels(word_ids: list[int | None], tags: list[int]) -> list[int]:
    before = [None, *word_ids]
    return [
        IGNORED if word is None or word == previous else tags[word]
        for previous, word in zip(before, word_ids, strict=False)
    ]


def _answers_of(rows: Dataset) -> list[dict[str, Any]]:
    """The answers of every row, `{"text": [...], "answer_start": [...]}` as in SQuAD."""
    found: list[Any] = list(rows["answers"])
    for number, answers in enumerate(found, 1):
        parts = [answers.get(name) for name in ("text", "answer_start")] if isinstance(answers, dict) else []
        sizes = {len(part) if isinstance(part, list) else None for part in parts}
        if len(sizes) != 1 or None in sizes:
            raise PruningError(
                f"Column 'answers', row {number}: {str(answers)[:80]!r} must be an object as in SQuAD,"
                " {'text': [...], 'answer_start': [...]}; files of type .csv and .tsv cannot hold one, .json and"
                " .parquet can."
            )
    return found


def _answer_tokens(
    answers: dict[str, Any], offsets: list[tuple[int, int]], sequences: list[int | None]
) -> tuple[int, int]:
    """First and last token of the first answer; (0, 0) if it is not inside."""
    if not len(answers["answer_start"]):
        return 0, 0
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    inside = [
        token
        for token, ((left, right), sequence) in enumerate(zip(offsets, sequences, strict=True))
        if sequence == 1 and left < end and right > start
    ]
    complete = inside and offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= end
    return (inside[0], inside[-1]) if complete else (0, 0)


def _mask(
    ids: Any, candidates: Any, tokenizer: PreTrainedTokenizerBase, generator: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Ids with some replaced, and the labels: of the chosen 80 % become the mask, 10 % a random token."""
    labels = np.full_like(ids, IGNORED)
    count = min(len(candidates), max(1, round(MASKED_SHARE * len(candidates))))
    chosen = generator.permutation(candidates)[:count]
    labels[chosen] = ids[chosen]
    fate = generator.random(count)
    ids[chosen[fate < 0.8]] = tokenizer.mask_token_id
    swapped = chosen[fate >= 0.9]
    ids[swapped] = generator.integers(len(tokenizer), size=len(swapped))
    return ids.tolist(), labels.tolist()
