"""Checkpoints in the bitmask format through the doors that transformers has, against dense ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)

from hf_prune.surgery import save_bitmask
from hf_prune.surgery.bitmask_checkpoints import is_weight_file
from tests import mixtures
from tests.conformance.plans import difference, prune, run
from tests.family_models import main_head, sample
from tests.small_models import VOCABULARY, case
from tests.sparse_models import assert_same_weights, is_packed_folder, made_sparse, stored

BERT = case("bert", "classification")


@pytest.fixture
def model() -> PreTrainedModel:
    return made_sparse(BERT.model())


def test_classifier_comes_back(model: PreTrainedModel, tmp_path: Path) -> None:
    save_bitmask(model, tmp_path)
    for loader in (AutoModelForSequenceClassification, BertForSequenceClassification):
        assert_same_weights(loader.from_pretrained(tmp_path), model)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_names_in_the_file(model: PreTrainedModel, tmp_path: Path) -> None:
    save_bitmask(model, tmp_path / "packed")
    model.save_pretrained(tmp_path / "dense")
    dense, packed = stored(tmp_path / "dense"), stored(tmp_path / "packed")
    matrices = {name for name, value in dense.items() if value.numel() >= 1000}
    assert len(matrices) > 15
    for name, value in dense.items():
        if name in matrices:
            assert torch.equal(packed[name], value[value != 0])
            assert packed[f"{name}_bitmask_shape"].tolist() == list(value.shape)
        elif value.dim() < 2:
            assert torch.equal(packed[name], value)
    assert (tmp_path / "packed/config.json").read_text() == (tmp_path / "dense/config.json").read_text()


def test_five_times_smaller_on_disk(tmp_path: Path) -> None:
    model = made_sparse(BERT.model(hidden_size=128, intermediate_size=512, vocab_size=2000))
    for name, save in (("dense", model.save_pretrained), ("packed", lambda folder: save_bitmask(model, folder))):
        save(tmp_path / name)
    dense, packed = (sum(file.stat().st_size for file in (tmp_path / name).iterdir()) for name in ("dense", "packed"))
    assert dense / packed >= 5


@pytest.mark.parametrize("model_type", ["gpt2", "t5", "llama", "bart", "clip", "vit", "wav2vec2"])
def test_families(model_type: str, tmp_path: Path) -> None:
    model = made_sparse(main_head(model_type).model())
    save_bitmask(model, tmp_path)
    assert is_packed_folder(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert_same_weights(loaded, model)
    assert difference(run(loaded, sample(model)), run(model, sample(model))) == 0


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_experts_that_are_stored_one_by_one(model_type: str, tmp_path: Path) -> None:
    model = made_sparse(mixtures.mixture(model_type))
    save_bitmask(model, tmp_path)
    experts = {name for name in stored(tmp_path) if ".experts.0." in name}
    assert any(name.endswith("_bitmask") for name in experts)
    assert_same_weights(type(model).from_pretrained(tmp_path), model)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    model = made_sparse(case("bert", "masked").model())
    save_bitmask(model, tmp_path)
    assert [name for name in sorted(stored(tmp_path)) if "word_embeddings" in name or "decoder.weight" in name] == [
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.word_embeddings.weight_bitmask",
        "bert.embeddings.word_embeddings.weight_bitmask_shape",
    ]
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert_same_weights(loaded, model)


def test_prefix_is_added_and_removed(model: PreTrainedModel, tmp_path: Path) -> None:
    save_bitmask(model, tmp_path / "head")
    bare = AutoModel.from_pretrained(tmp_path / "head", add_pooling_layer=True)
    assert_same_weights(bare, model.bert)
    save_bitmask(bare, tmp_path / "bare")
    assert "encoder.layer.0.output.dense.weight_bitmask" in stored(tmp_path / "bare")
    assert_same_weights(AutoModelForSequenceClassification.from_pretrained(tmp_path / "bare").bert, model.bert)


def test_shards(model: PreTrainedModel, tmp_path: Path) -> None:
    save_bitmask(model, tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(files) > 2
    content = {file.name: load_file(file) for file in files}
    assert index["weight_map"] == {name: file for file, tensors in content.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(v.nbytes for tensors in content.values() for v in tensors.values())
    assert_same_weights(AutoModelForSequenceClassification.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model: PreTrainedModel, tmp_path: Path, dtype: torch.dtype) -> None:
    save_bitmask(model.to(dtype), tmp_path)
    assert is_packed_folder(tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    assert_same_weights(load(tmp_path, dtype=dtype), model)
    assert_same_weights(load(tmp_path, dtype="auto"), model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]  # it has to be found in the file then
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_weights(load(tmp_path, dtype="auto"), model)
    assert_same_weights(load(tmp_path, dtype=torch.float32), model.float())


def test_narrowed_while_loading(model: PreTrainedModel, tmp_path: Path) -> None:
    save_bitmask(model, tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_same_weights(loaded, model.to(torch.bfloat16))


@pytest.mark.parametrize("sharded", [False, True])
def test_device_maps(model: PreTrainedModel, tmp_path: Path, sharded: bool) -> None:
    save_bitmask(model, tmp_path / "model", max_shard_size="20KB" if sharded else "1GB")
    automatic = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", device_map="auto")
    assert_same_weights(automatic.to("cpu"), model)
    places = {"bert.embeddings": "cpu", "bert.pooler": "cpu", "classifier": "cpu", "bert.encoder": "disk"}
    offloaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    assert offloaded.bert.encoder.layer[0].output.dense.weight.device.type == "meta"
    assert difference(run(offloaded, BERT.batch()), run(model, BERT.batch())) == 0


def test_pipeline(model: PreTrainedModel, tmp_path: Path) -> None:
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {f"w{index}": index for index in range(2, VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    save_bitmask(model, tmp_path)
    classify = pipeline("text-classification", str(tmp_path), device="cpu")
    assert_same_weights(classify.model, model)
    assert len(classify(["w7 w8 w50"], top_k=None)[0]) == model.config.num_labels


def test_physically_pruned_model(tmp_path: Path) -> None:
    model = BERT.model()
    prune(model, BERT.batch())
    save_bitmask(made_sparse(model), tmp_path)
    assert is_packed_folder(tmp_path)
    assert_same_weights(AutoModelForSequenceClassification.from_pretrained(tmp_path), model)


def test_loaded_model_is_saved_densely(model: PreTrainedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.0)  # the format's zeros have no sign
    save_bitmask(model, tmp_path / "packed")
    model.save_pretrained(tmp_path / "dense")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed").save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "dense" / name).read_bytes()


def test_model_without_zeros_gives_the_ordinary_file(tmp_path: Path) -> None:
    model = BERT.model()
    save_bitmask(model, tmp_path / "packed")
    model.save_pretrained(tmp_path / "dense")
    files = [tmp_path / name / "model.safetensors" for name in ("packed", "dense")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_files_of_an_earlier_save_are_replaced(model: PreTrainedModel, tmp_path: Path) -> None:
    BERT.model(seed=1).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("kept")
    save_bitmask(model, tmp_path)
    assert_same_weights(AutoModelForSequenceClassification.from_pretrained(tmp_path), model)
    assert (tmp_path / "README.md").read_text() == "kept"


def test_an_earlier_file_is_not_read_in_place_of_new_shards(model: PreTrainedModel, tmp_path: Path) -> None:
    BERT.model(seed=1).save_pretrained(tmp_path)
    save_bitmask(model, tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_weights(AutoModelForSequenceClassification.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    ("name", "whether"),
    [
        ("model.safetensors", True),
        ("model-00001-of-00012.safetensors", True),
        ("model.safetensors.index.json", True),
        ("pytorch_model.bin", True),
        ("pytorch_model-00002-of-00002.bin", True),
        ("pytorch_model.bin.index.json", True),
        ("adapter_model.safetensors", False),
        ("model-1-of-2.safetensors", False),
        ("training_args.bin", False),
        ("pruning_masks.safetensors", False),
    ],
)
def test_names_of_weight_files(name: str, whether: bool) -> None:
    assert is_weight_file(name) is whether


LOAD_ELSEWHERE = """
import sys

from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

import hf_prune

save_file(AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).state_dict(), sys.argv[2])
"""


def test_importing_hf_prune_is_enough(model: PreTrainedModel, tmp_path: Path, run_python: Callable[..., str]) -> None:
    save_bitmask(model, tmp_path / "model")
    run_python(LOAD_ELSEWHERE, tmp_path / "model", tmp_path / "elsewhere.safetensors")
    elsewhere = load_file(tmp_path / "elsewhere.safetensors")
    assert all(torch.equal(elsewhere[name], value) for name, value in model.state_dict().items())
