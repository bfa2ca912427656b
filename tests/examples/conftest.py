from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, set_seed

from tests.cli.rows import WORDS, sentence, write_tsv

EXAMPLES = Path(__file__).parents[2] / "examples"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABEL_WORDS = ["great", "terrible"]
ROWS = 24

# The scripts import what lies beside them, as Python arranges it for a script that is run.
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "benchmarks")]

RunScript = Callable[..., None]


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    words = [*SPECIAL, *WORDS, *LABEL_WORDS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=64)
    set_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            pad_token_id=0,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences with the names of their classes."""
    columns = {"sentence": list(map(sentence, range(ROWS))), "label": ["negative", "positive"] * (ROWS // 2)}
    return write_tsv(tmp_path_factory.mktemp("rows") / "rows.tsv", columns)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines of text."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(map(sentence, range(100))), encoding="utf8")
    return path


@pytest.fixture
def files(base_model: Path, labelled: Path, tmp_path: Path) -> Path:
    """Models and data as the benchmarks want them, with the tiny model as the base."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "minilm-base").symlink_to(base_model)
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    names = {"negative": "0", "positive": "1"}
    lines = [line.rsplit("\t", 1) for line in labelled.read_text(encoding="utf8").splitlines()]
    text = "".join(f"{sentence}\t{names.get(label, label)}\n" for sentence, label in lines)
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "data" / "sst2" / name).write_text(text, encoding="utf8")
    return tmp_path


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> RunScript:
    """Runs a script of `examples` as `python` does, in this process."""

    def run(name: str, *options: object) -> None:
        path = EXAMPLES / name
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, options)])
        runpy.run_path(str(path), run_name="__main__")

    return run
