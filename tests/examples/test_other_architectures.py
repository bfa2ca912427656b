"""The benchmark of other architectures, on models that are smaller still."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import other_architectures
import pytest
import small_subjects
import torch
from other_architectures import MODES, SUBJECTS, Cell
from small_subjects import DIGITS, SORTED_LENGTH, Sorter, SortingPerplexity
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.cli.rows import sentence


@pytest.fixture
def files(base_model: Path, tmp_path: Path) -> Path:
    """Decoders and stories as the script wants them."""
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, num_key_value_heads=2, **sizes)
    )
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=DIGITS, n_positions=11, n_embd=12, n_layer=2, n_head=3))
    for name, model in (("stories260k", llama), ("gpt-nano-sort", gpt)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "models" / name)
    tokenizer.save_pretrained(tmp_path / "models" / "stories260k")
    (tmp_path / "data" / "tinystories").mkdir(parents=True)
    stories = "<|endoftext|>".join(f"{sentence(index)} {sentence(index + 3)}" for index in range(120))
    (tmp_path / "data" / "tinystories" / "sample_2MB.txt").write_text(stories, encoding="utf8")
    return tmp_path


def test_decoders_are_pruned_in_every_mode(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_subjects, "CALIBRATION_STORIES", 64)
    output = files / "found.json"
    folders = ["--models", files / "models", "--data", files / "data", "--cache", files / "cache", "--output", output]
    options = [*map(str, folders), "--seeds", "1", "--only", "subject=stories", "flops=0.5"]
    other_architectures.main(options)
    report = capsys.readouterr().out
    tables = report.split("## ")[1:]
    assert [table.split()[0] for table in tables] == ["stories260k"]
    for table in tables:
        rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
        assert [name.strip() for name in rows[0]] == ["FLOPs", *MODES]
        assert [row[0].strip() for row in rows[2:]] == ["0.5", "seconds"]
        assert all(float(value) > 0 for row in rows[2:] for value in row[1:])
    for subject in json.loads(output.read_text())["subjects"]:
        assert subject["dense"] > 1
        assert [cell["mode"] for cell in subject["cells"]] == list(MODES)
        assert all(cell["kept_flops"] <= 0.5 for cell in subject["cells"])
        scores = {cell["mode"]: cell["score"] for cell in subject["cells"]}
        assert len(set(scores.values())) > 3

    monkeypatch.setattr(other_architectures, "measure", None)
    other_architectures.main([*options, "--finished"])
    assert capsys.readouterr().out == report
    with pytest.raises(SystemExit, match="nothing was measured yet"):
        other_architectures.main([*options[:-1], "flops=0.7", "--finished"])
    with pytest.raises(SystemExit):
        other_architectures.main([*options, "--only", "subject=poems"])
    assert "subject is one of digits, sorter" in capsys.readouterr().err


def test_budgets_out_of_reach_have_no_score(tmp_path: Path) -> None:
    measured: list[tuple[Cell, dict[str, Any]]] = [
        (Cell("sorter", 0.5, "weights", 0, 1, ""), {"score": 700.0, "kept_flops": 0.5, "seconds": 2.0}),
        (Cell("sorter", 0.5, "weights", 1, 1, ""), {"score": 720.0, "kept_flops": 0.5, "seconds": 4.0}),
        (Cell("sorter", 0.3, "weights", 0, 1, ""), {"refused": "too small"}),
        (Cell("sorter", 0.5, "none", 0, 1, ""), {"score": 600.0, "kept_flops": 0.5}),  # from before there were seconds
    ]
    table = other_architectures.table(Sorter(tmp_path), 729.0, measured)
    header, _, *rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    assert [[value.strip() for value in row] for row in (header, *rows)] == [
        ["FLOPs", "none", "weights"],
        ["0.5", "600.00", "710.00 ± 127.06"],
        ["0.3", "–", "–"],
        ["seconds", "–", "3.0"],
    ]


def test_keys_are_those_of_the_first_cells() -> None:
    first = {
        "strategy": "fisher", "target_modules": None, "exclude_modules": None, "flops": 0.5, "params": None,
        "latency": None, "latency_ms": None, "sequence_length": None, "latency_batch_size": 32, "batch_size": 32,
        "round_to": 1, "uniform": False, "importance": "fisher", "rearrange": None, "recovery": "mask_tuning",
        "solver": "direct", "damp": 1.0, "refit_examples": 1024,
    }  # fmt: skip
    cell = Cell("digits", 0.5, "mask_tuning", 0, 1, "")
    assert cell.settings() == {"subject": "digits", "seed": 0, "tag": "", "config": first}
    assert cell.name == "digits-0.5-mask_tuning-seed0"
    labels = Cell("digits", 0.5, "after_refit_model_labels", 0, 1, "").settings()["config"]
    assert labels["labels"] == "model"
    assert set(SUBJECTS) == {"stories", "sorter", "sorting_perplexity", "digits"}


def test_perplexity_of_sorting_against_one_digit_at_a_time(files: Path) -> None:
    subject = SortingPerplexity(files / "models")
    model = subject.model()
    inputs = subject._inputs[::50]
    subject._inputs = inputs
    loss = 0.0
    for digits in inputs.tolist():
        ids = digits
        for wanted in sorted(digits):
            with torch.no_grad():
                chances = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            loss -= float(chances[wanted])
            ids = [*ids, wanted]
    expected = torch.tensor(loss / (SORTED_LENGTH * len(inputs))).exp()
    assert subject.score(model) == pytest.approx(float(expected), rel=1e-4)
