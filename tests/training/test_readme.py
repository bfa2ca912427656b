"""The README's scripts, as they are printed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from hf_prune import MagnitudePruningConfig
from hf_prune.anatomy import all_matrices
from tests.small_models import VOCABULARY
from tests.training.runs import bert, is_clean, rows

README = Path(__file__).parents[2] / "README.md"
WORDS = [f"w{index}" for index in range(VOCABULARY - 2)]

LOOKS_AT_THE_MODEL = """
import torch
from safetensors.torch import save_file
inputs = {"input_ids": torch.arange(1, 9)[None]}
assert all(parameter._backward_hooks is None or not parameter._backward_hooks for parameter in model.parameters())
save_file({"logits": model.eval()(**inputs).logits}, "logits.safetensors")
"""
LOADS_IT = """
import sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
logits = model(input_ids=torch.arange(1, 9)[None]).logits
assert torch.equal(logits, load_file("logits.safetensors")["logits"])
assert "hf_prune" not in sys.modules
for name, value in model.named_parameters():
    if "encoder" in name and value.dim() == 2:
        print(name, int((value == 0).sum()) - round(0.6 * value.numel()))
"""


def block_with(text: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf8"), re.DOTALL)
    return next(block for block in blocks if text in block)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its tokenizer, and a table of sentences."""
    bert(0.1).save_pretrained(tmp_path / "my-model")
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        tmp_path / "my-model"
    )
    lines = [f"{' '.join(WORDS[index % 7 : index % 7 + 5])},{index % 3}" for index in range(32)]
    (tmp_path / "train.csv").write_text("\n".join(["sentence,label", *lines]), encoding="utf8")
    return tmp_path


def test_twelve_lines_with_a_trainer(
    folder: Path, run_python: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    script = block_with("PruningCallback(MagnitudePruningConfig(sparsity=0.6))")
    assert len([line for line in script.splitlines() if line.strip()]) <= 12
    run_python(script + LOOKS_AT_THE_MODEL)
    matrices = run_python(LOADS_IT, "small").splitlines()
    assert len(matrices) == 18
    assert all(line.endswith(" 0") for line in matrices), matrices


def test_three_lines_in_a_loop() -> None:
    script = block_with("start_pruning(model")
    loop = (
        "for _ in range(epochs):\n    for batch in loader:\n        model(**batch).loss.backward()\n"
        "        optimizer.step()\n        optimizer.zero_grad()\n"
    )
    assert "...  # the training loop as it is\n" in script
    model = bert()
    names = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "loader": DataLoader(rows().with_format("torch"), batch_size=4),
        "epochs": 2,
        "MagnitudePruningConfig": MagnitudePruningConfig,
    }
    exec(script.replace("...  # the training loop as it is\n", loop), names)
    assert is_clean(model)
    zeros = {matrix.name: int((matrix.parameter == 0).sum()) for matrix in all_matrices(model)}
    masks = names["result"].plan.masks
    assert len(masks) == 20
    for name, mask in masks.items():
        assert zeros[name] == round(0.6 * mask.numel()), name
