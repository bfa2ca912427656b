from __future__ import annotations

import collections
import fractions
import http.client
import textwrap
from pathlib import Path

import pytest
from datasets import DatasetDict

from hf_prune.demo import docstrings
from hf_prune.demo.docstrings import MAXIMUM_WORDS, MINIMUM_WORDS, TOPICS, load_docstrings
from hf_prune.errors import PruningError


def test_same_seed_gives_the_same_rows_and_another_seed_another_split(dataset: DatasetDict) -> None:
    again, other = load_docstrings(seed=0), load_docstrings(seed=1)
    for split in ("train", "validation"):
        assert again[split].to_dict() == dataset[split].to_dict()
        assert set(other[split]["text"]) != set(dataset[split]["text"])
    both = [*dataset["train"]["text"], *dataset["validation"]["text"]]
    assert sorted(both) == sorted([*other["train"]["text"], *other["validation"]["text"]])


def test_no_text_is_repeated_within_or_across_the_splits(dataset: DatasetDict) -> None:
    texts = [text.lower() for split in dataset.values() for text in split["text"]]
    assert len(texts) > 2000
    assert len(texts) == len(set(texts))


def test_every_topic_is_in_both_splits_and_none_dominates(dataset: DatasetDict) -> None:
    for split in dataset.values():
        feature = split.features["label"]
        assert feature.names == sorted(TOPICS)
        shares = {label: n / len(split) for label, n in collections.Counter(split["label"]).items()}
        assert set(shares) == set(range(len(TOPICS)))
        assert min(shares.values()) > 0.04
        assert max(shares.values()) < 0.25


def test_rows_have_the_documented_length(dataset: DatasetDict) -> None:
    lengths = {len(text.split()) for split in dataset.values() for text in split["text"]}
    assert (min(lengths), max(lengths)) == (MINIMUM_WORDS, MAXIMUM_WORDS)


def test_a_docstring_keeps_the_topic_of_its_module(dataset: DatasetDict) -> None:
    topic_of = {
        text: split.features["label"].int2str(label)
        for split in dataset.values()
        for text, label in zip(split["text"], split["label"], strict=True)
    }

    def words(documented: object) -> str:
        return " ".join((documented.__doc__ or "").split()[:MAXIMUM_WORDS])

    assert topic_of[words(fractions.Fraction)] == "numbers"
    assert topic_of[words(http.client)] == "web"
    assert words(textwrap.TextWrapper) not in topic_of


def test_only_documented_definitions_outside_test_folders_become_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docstrings, "TOPICS", {"letters": "alpha missing", "figures": "one"})
    monkeypatch.setattr(docstrings, "MINIMUM_ROWS", 1)
    (tmp_path / "alpha" / "tests").mkdir(parents=True)
    (tmp_path / "alpha" / "__init__.py").write_text(
        '''"""The module of letters has six words."""
raise RuntimeError("imported")
class Letter:
    """A class of letters has,
        with its white space, more words."""
    async def later(self):
        """An asynchronous method is documented as well."""
        def inner():
            """The Same Words stand under two topics."""
    def short(self):
        """Too short a text."""
''',
        encoding="utf8",
    )
    (tmp_path / "alpha" / "tests" / "check.py").write_text('"""A test module is never among the rows."""')
    (tmp_path / "one.py").write_text(
        '"""The figures are one two three four five."""\n'
        'def f():\n    """the same words stand under two topics."""\n'
        'def g():\n    """The figures are ONE two three four five."""\n'
    )
    (tmp_path / "two.py").write_text('"""This module is listed under no topic."""')
    dataset = load_docstrings(library=tmp_path)
    rows = {
        (text, split.features["label"].int2str(label))
        for split in dataset.values()
        for text, label in zip(split["text"], split["label"], strict=True)
    }
    assert rows == {
        ("The module of letters has six words.", "letters"),
        ("A class of letters has, with its white space, more words.", "letters"),
        ("An asynchronous method is documented as well.", "letters"),
        ("The figures are one two three four five.", "figures"),
    }


def test_a_library_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PruningError, match=r"found 0 docstrings about 'concurrency'.*at least 200"):
        load_docstrings(library=tmp_path)
