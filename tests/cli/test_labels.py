from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import BertConfig

from hf_prune.commands.labels import LabelMap, regression_targets
from hf_prune.errors import PruningError

SENTIMENT = BertConfig(label2id={"NEGATIVE": 0, "POSITIVE": 1}, id2label={0: "NEGATIVE", 1: "POSITIVE"})
UNNAMED = BertConfig(num_labels=3)


def ids(labels: list[Any], config: BertConfig, names: list[str] | None = None) -> list[int]:
    features = Features({"label": ClassLabel(names=names)}) if names else None
    rows = Dataset.from_dict({"label": labels}, features=features)
    return LabelMap(rows, "label", config).ids(rows["label"])


def test_names_in_any_case() -> None:
    assert ids(["positive", "Negative", "POSITIVE"], SENTIMENT) == [1, 0, 1]
    assert ids(["label_2", "LABEL_0"], UNNAMED) == [2, 0]


def test_numbers_are_class_ids_however_they_are_written() -> None:
    assert ids([0, 2, 1], UNNAMED) == [0, 2, 1]
    assert ids(["0", "2", "1"], UNNAMED) == [0, 2, 1]
    assert ids([0.0, 2.0], UNNAMED) == [0, 2]
    assert ids([True, False], SENTIMENT) == [1, 0]


def test_names_that_are_numbers_are_names() -> None:
    stars = BertConfig(label2id={"1": 0, "2": 1}, id2label={0: "1", 1: "2"})
    assert ids(["1", "2"], stars) == [0, 1]
    assert ids([1, 0], stars) == [1, 0]


def test_a_data_set_that_numbers_the_models_names_otherwise() -> None:
    assert ids([0, 1, 0], SENTIMENT, names=["positive", "negative"]) == [1, 0, 1]


def test_names_of_a_data_set_that_are_not_the_models_say_nothing() -> None:
    assert ids([0, 2, 1], UNNAMED, names=["entailment", "neutral", "contradiction"]) == [0, 2, 1]


def test_tags_in_lists_are_mapped_by_their_names_too() -> None:
    tagger = BertConfig(label2id={"O": 0, "B-PER": 1}, id2label={0: "O", 1: "B-PER"})
    rows = Dataset.from_dict({"tags": [[0, 1]]}).cast_column("tags", [ClassLabel(names=["B-PER", "O"])])
    assert LabelMap(rows, "tags", tagger).ids([0, 1]) == [1, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["positive", "neutral"],
            "the label 'neutral', which the model does not know; it knows 'negative', 'positive'",
        ),
        (["positive", "1"], "the label '1', which the model does not know"),
        ([0, 1, -1], r"the label -1, but the model's labels are 0 to 1. Rows without a label"),
        ([2], "the label 2, but"),
        ([0.5], "the label 0.5, which"),
        ([None], "the label None, which"),
    ],
)
def test_labels_that_the_model_does_not_know(labels: list[Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        ids(labels, SENTIMENT)


def test_regression_targets() -> None:
    rows = Dataset.from_dict({"score": ["5.000", "0.25"], "bad": ["1", "many"], "lost": [1.0, None]})
    assert regression_targets(rows, "score") == [5.0, 0.25]
    for column, value in (("bad", "'many'"), ("lost", "None")):
        with pytest.raises(PruningError, match=f"Column '{column}', row 2: {value} is not a number"):
            regression_targets(rows, column)


def test_value_features_have_no_names() -> None:
    rows = Dataset.from_dict({"label": [1]}, features=Features({"label": Value("int64")}))
    assert LabelMap(rows, "label", SENTIMENT).ids([1]) == [1]
