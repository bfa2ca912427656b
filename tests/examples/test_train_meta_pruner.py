"""The script that trains a meta-pruner, run as a user would, on a tiny model and tiny files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_prune import MetaPruner
from tests.cli.rows import sentence, write_tsv
from tests.examples.conftest import ROWS, RunScript

SMALL = ("--episodes", 2, "--episodes_per_update", 1, "--episode_examples", 4, "--validation_episodes", 1)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    first, second = list(map(sentence, range(ROWS))), list(map(sentence, range(1, ROWS + 1)))
    return write_tsv(tmp_path / "pairs.tsv", {"one": first, "other": second, "label": ["0"] * ROWS})


def train(run: RunScript, model: Path, output: Path, *options: object) -> None:
    run("train_meta_pruner.py", "--model_name_or_path", model, "--output_dir", output, "--use_cpu", *SMALL, *options)


def test_a_pruner_is_trained_and_goes_on(
    run_script: RunScript, base_model: Path, labelled: Path, pairs: Path, tmp_path: Path
) -> None:
    files = ("--single_files", labelled, "--pair_files", f"{pairs}:one:other", "--scored_examples", 2)
    train(run_script, base_model, tmp_path / "out", *files)
    assert MetaPruner.from_pretrained(tmp_path / "out").num_parameters() == 178_784
    train(run_script, base_model, tmp_path / "out", *files, "--episodes", 3, "--resume")
    history = json.loads((tmp_path / "out" / "meta_training.json").read_text())
    assert [entry["update"] for entry in history] == [0, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Give either --single_files"),
        (("--dataset_name", "x"), "Give either"),
        (("--pair_files", "{rows}"), "second"),
    ],
)
def test_what_it_cannot_use_is_refused(
    run_script: RunScript, base_model: Path, labelled: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(run_script, base_model, tmp_path, *(option.format(rows=labelled) for option in options))
