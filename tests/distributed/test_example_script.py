"""The example script with several processes writes what it writes with one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertTokenizer

from tests.distributed.launching import ROOT, launch
from tests.distributed.small_bert import small_model
from tests.distributed.written import assert_close

WORDS = ["good", "bad", "film", "dog", "sleeps", "very", "not", "the"]


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    """A classifier with its tokenizer, and rows for it."""
    model = small_model().float()
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(tmp_path / "model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=32)
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [" ".join(WORDS[index * step % 8] for step in range(1, 4 + index % 5)) for index in range(70)]
    lines = ["sentence\tlabel", *(f"{row}\t{index % 2}" for index, row in enumerate(rows))]
    (tmp_path / "rows.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "model", tmp_path / "rows.tsv"


def test_processes_share_the_rows_and_one_writes(tmp_path: Path, inputs: tuple[Path, Path]) -> None:
    model, rows = inputs
    for processes in (1, 2):
        finished = launch(
            ROOT / "examples" / "prune_text_classification.py",
            processes,
            *("--model_name_or_path", model, "--train_file", rows, "--validation_file", rows, "--use_cpu"),
            *("--text_columns", "sentence", "--output_dir", tmp_path / str(processes), "--params", 0.6),
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert finished.stdout.count("| accuracy |") == 1
        assert finished.stdout.count(" parameters.\n") == 1
    one, two = (load_file(tmp_path / str(processes) / "model.safetensors") for processes in (1, 2))
    assert_close(two, one)
