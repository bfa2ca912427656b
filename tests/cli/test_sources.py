from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from hf_prune.commands import sources
from hf_prune.commands.arguments import DataArguments
from hf_prune.commands.sources import load_rows, sample
from hf_prune.errors import PruningError

SPLITS = DatasetDict({"train": Dataset.from_dict({"n": [1, 2]}), "validation_matched": Dataset.from_dict({"n": [3]})})


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `datasets.load_dataset` was called with; it gives `SPLITS`."""
    calls: list[Any] = []

    def load(*arguments: Any) -> DatasetDict:
        calls.append(arguments)
        return SPLITS

    monkeypatch.setattr(sources, "load_dataset", load)
    return calls


def test_splits_of_a_data_set(asked_for: list[Any]) -> None:
    train, validation = load_rows(DataArguments(dataset_name="nyu-mll/glue", dataset_config_name="mnli"))
    assert asked_for == [("nyu-mll/glue", "mnli")]
    assert train["n"][:] == [1, 2]
    assert validation is not None
    assert validation["n"][:] == [3]
    swapped = load_rows(DataArguments(dataset_name="d", train_split="validation_matched", validation_split="train"))
    assert [rows["n"][:] for rows in swapped if rows] == [[3], [1, 2]]


def test_a_split_that_is_not_there(asked_for: list[Any]) -> None:
    with pytest.raises(PruningError, match="d has no split 'dev'; it has train, validation_matched"):
        load_rows(DataArguments(dataset_name="d", validation_split="dev"))


def test_a_data_set_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> DatasetDict:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(sources, "load_dataset", fail)
    with pytest.raises(PruningError, match=r"d \(c\) could not be loaded: ConnectionError: no network Check"):
        load_rows(DataArguments(dataset_name="d", dataset_config_name="c"))


def test_without_validation_rows(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\nb")
    train, validation = load_rows(DataArguments(train_file=tmp_path / "train.txt"))
    assert train["text"][:] == ["a", "b"]
    assert validation is None


def test_a_sample_is_drawn_without_replacement_and_by_seed() -> None:
    rows = Dataset.from_dict({"n": list(range(100))})
    drawn = sample(rows, 60, seed=1)["n"][:]
    assert len(set(drawn)) == 60
    assert drawn == sample(rows, 60, seed=1)["n"][:]
    assert set(drawn) != set(sample(rows, 60, seed=2)["n"][:])
    # Not the head of the file, whose rows may be sorted by label.
    assert max(drawn) > 90
    assert sample(rows, 200, seed=1)["n"][:] == sample(rows, None, seed=1)["n"][:] == list(range(100))
