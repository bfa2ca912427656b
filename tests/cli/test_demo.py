from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import BertForSequenceClassification, BertTokenizer

from hf_prune.commands import demo
from hf_prune.commands.demo import compare_with_new_process, run_demo
from hf_prune.errors import PruningError
from tests.cli.rows import Call, sentence

ROWS = Dataset.from_dict({"text": [sentence(index) for index in range(8)]})


def test_a_new_process_gives_the_same_logits(models: dict[str, Path], tokenizer: BertTokenizer) -> None:
    folder = models["classification"]
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    assert compare_with_new_process(model, tokenizer, ROWS, folder) < 1e-5


def test_other_logits_are_noticed(
    models: dict[str, Path], tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BertForSequenceClassification.from_pretrained(models["classification"]).eval()
    logits = model(**tokenizer(ROWS["text"][:], padding=True, return_tensors="pt")).logits.tolist()
    logits[3][0] += 0.01
    monkeypatch.setattr(demo, "logits_of_new_process", lambda folder, texts: logits)
    with pytest.raises(PruningError, match=r"gives other predictions: logits differ by 0\.01"):
        compare_with_new_process(model, tokenizer, ROWS, models["classification"])


def test_a_new_process_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "READ_BACK", "raise OSError('no such checkpoint')")
    with pytest.raises(PruningError, match=r"in a new process failed:[\s\S]*no such checkpoint"):
        demo.logits_of_new_process(tmp_path, ["a cat"])


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("two years of work")
    with pytest.raises(PruningError, match="holds no earlier demo"):
        run_demo(tmp_path, print)


def test_a_budget_that_cannot_be_is_refused_before_any_training(tmp_path: Path, call: Call) -> None:
    result = call("demo", "--flops", "1.5", "--output_dir", tmp_path / "demo")
    assert result.exit_code == 2
    assert "flops=1.5 must lie in (0, 1]" in result.stderr
    assert "Training" not in result.stderr


@pytest.mark.slow
def test_the_whole_story(tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "demo"
    result = call("demo", "--output_dir", folder, "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    metrics = answer["report"]["metrics"]
    assert metrics["dense"]["accuracy"] > 0.7
    assert metrics["pruned"]["accuracy"] > metrics["dense"]["accuracy"] - 0.05
    assert answer["report"]["pruned"]["flops"] <= 0.5 * answer["report"]["dense"]["flops"]
    assert answer["reloaded"]["largest_logit_difference"] <= 1e-4
    assert (folder / "pruning.png").is_file()
