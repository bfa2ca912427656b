"""The example script, run as a user would, on a tiny model and tiny files."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, pipeline

from hf_prune import PruningError
from tests.cli.rows import sentence, write_tsv

SCRIPT = Path(__file__).parents[2] / "examples" / "prune_text_classification.py"


def run_script(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, options)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_files_in_a_pipeline_out(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "small"
    columns = {"text": list(map(sentence, range(48))), "label": ["negative", "positive"] * 24}
    rows = write_tsv(tmp_path / "rows.tsv", columns)
    run_script(
        monkeypatch,
        *("--model_name_or_path", models["classification"]),
        *("--train_file", rows, "--validation_file", rows, "--text_columns", "text"),
        *("--output_dir", folder, "--flops", 0.5, "--recovery", "mask_tuning", "--resume_dir", tmp_path / "unfinished"),
    )
    assert not (tmp_path / "unfinished").exists()
    printed = capsys.readouterr().out
    assert "| accuracy |" in printed
    dense = AutoModelForSequenceClassification.from_pretrained(models["classification"])
    pruned = AutoModelForSequenceClassification.from_pretrained(folder)
    assert f"{pruned.num_parameters():,} parameters" in printed
    assert pruned.num_parameters() < dense.num_parameters()
    assert pruned.config.pruning["strategy"]["recovery"] == "mask_tuning"
    [answer] = pipeline("text-classification", str(folder))("a good film")
    assert answer["label"] in ("negative", "positive")


def test_a_run_is_kept_for_strategies_that_go_on_with_it(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_tsv(tmp_path / "rows.tsv", {"text": ["good", "bad"], "label": ["positive", "negative"]})
    with pytest.raises(PruningError, match="Strategies that can be resumed: "):
        run_script(
            monkeypatch,
            *("--model_name_or_path", models["classification"], "--train_file", rows, "--text_columns", "text"),
            *("--output_dir", tmp_path / "small", "--strategy", "random", "--heads", 0.5),
            *("--resume_dir", tmp_path / "unfinished"),
        )
    assert not (tmp_path / "small").exists()


def test_an_unknown_strategy_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_script(monkeypatch, "--strategy", "fischer", "--flops", 0.5)
    assert "fisher" in capsys.readouterr().err
