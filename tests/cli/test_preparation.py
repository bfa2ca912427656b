from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import BertConfig, BertTokenizer

from hf_prune.commands import preparation
from hf_prune.commands.arguments import DataArguments
from hf_prune.commands.columns import TEXT_COLUMNS, text_columns
from hf_prune.commands.metrics import IGNORED
from hf_prune.commands.preparation import Preparation
from hf_prune.commands.tasks import TASKS, choose_task
from hf_prune.errors import PruningError
from tests.cli.rows import WORDS, sentence

CONFIG = BertConfig(num_labels=2)


def how(tokenizer: BertTokenizer, config: BertConfig = CONFIG, max_length: int = 16, **columns: Any) -> Preparation:
    return Preparation(tokenizer, config, max_length, DataArguments(train_file=Path("rows.tsv"), **columns))


def test_pairs_are_encoded_as_the_tokenizer_does_and_cut(tokenizer: BertTokenizer) -> None:
    firsts, seconds = [sentence(1), "the dog " * 20], [sentence(2), "a cat"]
    rows = Dataset.from_dict({"premise": firsts, "hypothesis": seconds, "label": [1, 0]})
    prepared = preparation.text_classification(rows, how(tokenizer))
    expected = tokenizer(firsts, seconds, truncation=True, max_length=16)
    assert prepared.to_dict() == {**expected, "labels": [1, 0]}
    assert len(prepared["input_ids"][1]) == 16


def test_columns_that_are_named_win_over_usual_ones(tokenizer: BertTokenizer) -> None:
    rows = Dataset.from_dict({"sentence": ["a cat"], "review": ["the dog"], "label": [0], "stars": [1]})
    prepared = preparation.text_classification(rows, how(tokenizer, text_column="review", label_column="stars"))
    assert prepared["input_ids"][0] == tokenizer("the dog")["input_ids"]
    assert prepared["labels"][0] == 1


def test_every_usual_pair_of_columns_is_found() -> None:
    data = DataArguments(train_file=Path("rows.tsv"))
    for first, second in TEXT_COLUMNS:
        rows = Dataset.from_dict({name: ["text"] for name in ("idx", "label", first, second) if name})
        assert text_columns(rows, data) == (first, second)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ({"body": ["a"], "label": [0]}, {}, "None of the usual text columns is among body, label"),
        ({"text": ["a"], "class": [0]}, {}, "None of label, labels, score is among the columns text, class"),
        ({"text": ["a", None], "label": [0, 1]}, {}, "Column 'text', row 2: None is not a text"),
        ({"text": ["a"], "label": [0]}, {"text_column": "text", "text_pair_column": "b"}, "--text_pair_column"),
    ],
)
def test_columns_that_are_not_there(
    tokenizer: BertTokenizer, rows: dict[str, list[Any]], columns: dict[str, str], message: str
) -> None:
    with pytest.raises(PruningError, match=message):
        preparation.text_classification(Dataset.from_dict(rows), how(tokenizer, **columns))


def test_several_labels_per_text_are_refused(tokenizer: BertTokenizer) -> None:
    config = BertConfig(problem_type="multi_label_classification")
    rows = Dataset.from_dict({"text": ["a"], "label": [0]})
    with pytest.raises(PruningError, match="several labels per text"):
        preparation.text_classification(rows, how(tokenizer, config))


def test_the_first_token_of_a_word_carries_its_tag(tokenizer: BertTokenizer) -> None:
    rows = Dataset.from_dict({"words": [["the", "dog.runs", "on"], ["cat"]], "tags": [[0, 1, 0], [1]]})
    prepared = preparation.token_classification(rows, how(tokenizer))
    # "dog.runs" is three tokens; [CLS] and [SEP] have no tag.
    assert prepared["labels"][0] == [IGNORED, 0, 1, IGNORED, IGNORED, 0, IGNORED]
    assert prepared["labels"][1] == [IGNORED, 1, IGNORED]
    assert tokenizer.convert_ids_to_tokens(prepared["input_ids"][0])[2] == "dog"


def test_words_and_tags_must_be_as_many(tokenizer: BertTokenizer) -> None:
    rows = Dataset.from_dict({"words": ["a cat", "a dog"], "tags": ["0 1", "0 1 0"]})
    with pytest.raises(PruningError, match="Row 2 has 2 words in 'words' and 3 tags in 'tags'"):
        preparation.token_classification(rows, how(tokenizer))


def test_answers_are_found_again_in_the_tokens(tokenizer: BertTokenizer) -> None:
    context = "the very small dog runs on"
    answers = ["small dog", "the", "on", "mall d"]
    places = [{"text": [text], "answer_start": [context.index(text)]} for text in answers]
    rows = Dataset.from_dict({"question": ["is it"] * 4, "context": [context] * 4, "answers": places})
    prepared = preparation.question_answering(rows, how(tokenizer)).to_dict()
    found = [
        tokenizer.decode(ids[start : end + 1])
        for ids, start, end in zip(
            *(prepared[name] for name in ("input_ids", "start_positions", "end_positions")), strict=True
        )
    ]
    assert found == ["small dog", "the", "on", "small dog"]


@pytest.mark.parametrize(
    "answers",
    [
        "{'text': ['dog'], 'answer_start': [4]}",
        {"text": ["dog"]},
        {"text": ["dog"], "answer_start": [4, 7]},
        {"text": "dog", "answer_start": 4},
    ],
    ids=["of a table", "no place", "more places", "no lists"],
)
def test_answers_of_another_form(answers: Any, tokenizer: BertTokenizer) -> None:
    rows = Dataset.from_dict({"question": ["is it"], "context": ["the dog"], "answers": [answers]})
    with pytest.raises(PruningError, match=r"'answers', row 1: .* must be an object as in SQuAD"):
        preparation.question_answering(rows, how(tokenizer))


def test_answers_that_are_cut_off_or_absent_are_at_the_first_token(tokenizer: BertTokenizer) -> None:
    context = "the dog " * 10 + "sleeps"
    none: dict[str, list[Any]] = {"text": [], "answer_start": []}
    places = [{"text": ["sleeps"], "answer_start": [80]}, none]
    rows = Dataset.from_dict({"question": ["is it"] * 2, "context": [context] * 2, "answers": places})
    prepared = preparation.question_answering(rows, how(tokenizer))
    assert list(prepared["start_positions"]) == [0, 0]
    assert list(prepared["end_positions"]) == [0, 0]
    with pytest.raises(PruningError, match="answers is not among question, context"):
        preparation.question_answering(rows.remove_columns("answers"), how(tokenizer))


def test_masked_tokens_can_be_put_back(tokenizer: BertTokenizer) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=30)) for _ in range(300)]
    rows = Dataset.from_dict({"text": [*texts, ""]})
    prepared = preparation.masked_language_model(rows, how(tokenizer, max_length=64)).to_dict()
    assert prepared == preparation.masked_language_model(rows, how(tokenizer, max_length=64)).to_dict()
    # The empty text has nothing to guess.
    assert len(prepared["input_ids"]) == 300
    ids, labels = np.array(prepared["input_ids"]), np.array(prepared["labels"])
    original = np.array(tokenizer(texts)["input_ids"])
    masked = labels != IGNORED
    assert (np.where(masked, labels, ids) == original).all()
    assert (masked.sum(1) == round(0.15 * 30)).all()
    assert not masked[:, [0, -1]].any()
    share = (ids[masked] == tokenizer.mask_token_id).mean()
    assert 0.75 < share < 0.87
    assert 0.06 < (ids[masked] == labels[masked]).mean() < 0.16


def test_texts_of_a_language_model_are_their_own_labels(tokenizer: BertTokenizer) -> None:
    rows = Dataset.from_dict({"text": ["the dog runs", "a cat"]})
    prepared = preparation.causal_language_model(rows, how(tokenizer)).to_dict()
    assert prepared["labels"] == prepared["input_ids"] == tokenizer(rows["text"][:])["input_ids"]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertLMHeadModel", "text-generation"),
    ],
)
def test_the_task_is_read_from_the_architecture(architecture: str, task: str) -> None:
    assert choose_task(None, BertConfig(architectures=[architecture])).name == task
    assert choose_task("fill-mask", BertConfig(architectures=[architecture])).name == "fill-mask"


@pytest.mark.parametrize("architectures", [None, ["BertModel"], ["BertForMultipleChoice"]])
def test_an_architecture_without_a_task_is_refused(architectures: list[str] | None) -> None:
    with pytest.raises(PruningError, match="Name one with --task"):
        choose_task(None, BertConfig(architectures=architectures))


def test_tasks_are_named_once() -> None:
    assert len({task.name for task in TASKS}) == len(TASKS)
