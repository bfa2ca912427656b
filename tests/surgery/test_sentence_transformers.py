"""A pruned encoder inside a sentence-transformers model: saved, loaded, and with the vectors that it had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_prune import RandomPruningConfig, describe_model, prune_model
from hf_prune.report import sentence_vectors
from tests.small_models import HEADS, LAYERS, VOCABULARY, case

sentence_transformers = pytest.importorskip("sentence_transformers")

SENTENCES = ["w3 w4 w5", "w9", "w20 w21 w3 w30 w31", "w5 w5"]


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    """A plain encoder with its tokenizer, which sentence-transformers reads with mean pooling."""
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{index}": index + 2 for index in range(VOCABULARY - 2)}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=48
    )
    case("bert", "bare").model().save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_pruned_sentence_model_is_saved_and_loaded(encoder_folder: Path, tmp_path: Path) -> None:
    model = sentence_transformers.SentenceTransformer(str(encoder_folder), device="cpu")
    dense = model.encode(SENTENCES)
    prune_model(model[0].auto_model, RandomPruningConfig(heads=0.5))
    pruned = model.encode(SENTENCES)
    assert np.abs(pruned - dense).max() > 0.1
    model.save(str(tmp_path / "pruned"))
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "pruned"), device="cpu")
    assert [block.units for block in describe_model(loaded[0].auto_model).attentions] == [HEADS // 2] * LAYERS
    assert np.array_equal(loaded.encode(SENTENCES), pruned)
    ours = sentence_vectors(loaded[0].auto_model, loaded.tokenizer, SENTENCES)
    np.testing.assert_allclose(ours.numpy(), pruned, atol=1e-5)
