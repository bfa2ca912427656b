from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    RobertaConfig,
    RobertaTokenizer,
)

from hf_prune.commands.models import load_config, load_model, load_tokenizer, model_class_of, model_without_weights
from hf_prune.errors import PruningError


def test_weights_that_the_checkpoint_lacks_are_named(models: dict[str, Path]) -> None:
    model, missing = load_model(str(models["classification"]), AutoModelForSequenceClassification, device="cpu")
    assert (model.training, model.dtype, missing) == (False, torch.float32, [])
    _, missing = load_model(str(models["masks"]), AutoModelForSequenceClassification, device="cpu")
    assert {"classifier.weight", "classifier.bias"} <= set(missing)


def test_auto_keeps_the_checkpoints_dtype(models: dict[str, Path], tmp_path: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(models["classification"], dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    for asked, dtype in (("auto", torch.bfloat16), ("float32", torch.float32)):
        assert load_model(str(tmp_path), AutoModelForSequenceClassification, asked, "cpu")[0].dtype == dtype


def test_the_class_is_the_checkpoints_own(models: dict[str, Path]) -> None:
    config = load_config(str(models["classification"]))
    model = model_without_weights(config)
    assert type(model) is BertForSequenceClassification
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    for architectures in (None, ["NoSuchModel"], ["AutoConfig"], ["logging"]):
        assert model_class_of(BertConfig(architectures=architectures)) is AutoModel


def test_a_tokenizer_of_another_model_is_refused(models: dict[str, Path], tokenizer: BertTokenizer) -> None:
    with pytest.raises(PruningError, match=f"knows {len(tokenizer)} tokens and the model only 10"):
        load_tokenizer(str(models["classification"]), BertConfig(vocab_size=10))


def test_split_words_stay_words(tmp_path: Path) -> None:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *string.ascii_lowercase]
    RobertaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]).save_pretrained(tmp_path)
    config = RobertaConfig(vocab_size=len(pieces))
    config.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), config, split_words=True)
    split = tokenizer(["ab", "c"], is_split_into_words=True)
    assert tokenizer.convert_ids_to_tokens(split["input_ids"]) == ["<s>", "Ġ", "a", "b", "Ġ", "c", "</s>"]
    whole = load_tokenizer(str(tmp_path), config)("ab")
    assert tokenizer.convert_ids_to_tokens(whole["input_ids"]) == ["<s>", "a", "b", "</s>"]


def test_a_name_that_is_no_folder_is_said_to_be_taken_for_a_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        @staticmethod
        def from_pretrained(name: str, **settings: object) -> None:
            raise OSError(f"{name} is not a model\nmore lines")

    with pytest.raises(
        PruningError, match=r"my-model \(there is no such folder.*with Absent: my-model is not a model$"
    ):
        load_model("my-model", Absent, device="cpu")
