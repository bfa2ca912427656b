"""Pruned checkpoints through every door that transformers has, in this process and in others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)

from hf_prune import describe_model
from hf_prune.surgery import PruningPlan, apply_plan, install_build_hook, write_metadata
from tests.conformance.plans import difference, prune, run
from tests.family_models import heads_of, sample
from tests.small_models import case

BERT = case("bert", "classification")

LOAD_ELSEWHERE = """
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import hf_prune

for folder in map(Path, sys.argv[1:]):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**load_file(folder / "batch.safetensors")).logits
    save_file({"logits": logits}, folder / "logits_elsewhere.safetensors")
"""

LOAD_WITHOUT_HF_PRUNE = """
import json
import sys

from transformers import AutoModelForSequenceClassification

found = {}
for folder in sys.argv[1:]:
    try:
        AutoModelForSequenceClassification.from_pretrained(folder)
        found[folder] = "loaded"
    except Exception as error:
        found[folder] = f"{type(error).__name__}: {error}"
assert "hf_prune" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture
def model() -> PreTrainedModel:
    model = BERT.model()
    prune(model, BERT.batch())
    return model


def sizes(model: PreTrainedModel) -> list[int]:
    return [block.units for block in describe_model(model).blocks]


def test_second_process_gives_the_same_logits(tmp_path: Path, run_python: Callable[..., str]) -> None:
    folders = []
    for model_type in ("bert", "distilbert", "albert", "deberta-v2", "gpt2", "llama", "phi3", "bloom", "t5", "bart"):
        classifiers = (head for head in heads_of(model_type) if head.auto_class is AutoModelForSequenceClassification)
        folder, model = tmp_path / model_type, next(classifiers).model()
        batch = sample(model)
        prune(model, batch)
        model.save_pretrained(folder)
        save_file(batch, folder / "batch.safetensors")
        with torch.no_grad():
            save_file({"logits": model(**batch).logits}, folder / "logits.safetensors")
        folders.append(folder)
    run_python(LOAD_ELSEWHERE, *folders)
    for folder in folders:
        here, elsewhere = (load_file(folder / f"{name}.safetensors") for name in ("logits", "logits_elsewhere"))
        assert torch.equal(here["logits"], elsewhere["logits"])


def test_loading_without_hf_prune_fails(tmp_path: Path, run_python: Callable[..., str]) -> None:
    folders = []
    for model_type in ("bert", "distilbert"):
        item = case(model_type, "classification")
        blocks = describe_model(item.model()).blocks
        plans = {
            "some_heads": {blocks[0].key: (1, 2)},
            "some_filters": {blocks[1].key: (1, 2)},
            "no_heads": {blocks[2].key: ()},
            "no_filters": {blocks[3].key: ()},
            "nothing": {},
        }
        for name, kept in plans.items():
            model = item.model()
            anatomy = describe_model(model)
            apply_plan(model, anatomy, PruningPlan(kept))
            write_metadata(model, anatomy, PruningPlan(kept), {}, {}, {})
            model.save_pretrained(tmp_path / f"{model_type}_{name}")
            folders.append(tmp_path / f"{model_type}_{name}")
    found = json.loads(run_python(LOAD_WITHOUT_HF_PRUNE, *folders))
    for folder in folders:
        if folder.name.endswith("nothing"):
            assert found[str(folder)] == "loaded"
        else:
            assert found[str(folder)].startswith("RuntimeError")
            assert "mismatch" in found[str(folder)]


def test_models_are_built_from_their_config(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    for built in (AutoModelForSequenceClassification.from_config(config), BertForSequenceClassification(config)):
        assert sizes(built) == sizes(model)
        assert [value.shape for value in built.state_dict().values()] == [v.shape for v in model.state_dict().values()]
        built.load_state_dict(model.state_dict())
        assert difference(run(built.eval(), BERT.batch()), run(model, BERT.batch())) == 0


def test_other_heads_on_the_same_checkpoint(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    hidden = run(model.bert, BERT.batch())[0]
    for loader in (AutoModel, BertModel):
        assert torch.equal(run(loader.from_pretrained(tmp_path), BERT.batch())[0], hidden)
    assert torch.equal(run(AutoModelForMaskedLM.from_pretrained(tmp_path).bert, BERT.batch())[0], hidden)


def test_bare_checkpoint_gets_a_head(tmp_path: Path) -> None:
    bare = case("bert", "bare")
    model = bare.model()
    prune(model, bare.batch())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(run(loaded.bert, bare.batch())[0], run(model, bare.batch())[0])


def test_sharded_checkpoint(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert difference(run(loaded, BERT.batch()), run(model, BERT.batch())) == 0


def test_device_map(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, device_map="auto")
    inputs = {name: value.to(loaded.device) for name, value in BERT.batch().items()}
    outputs = [output.cpu() for output in run(loaded, inputs)]
    assert difference(outputs, run(model, BERT.batch())) <= (0 if loaded.device.type == "cpu" else 1e-4)


def test_device_map_that_offloads_to_disk(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    places = {"bert.embeddings": "cpu", "bert.pooler": "cpu", "classifier": "cpu", "bert.encoder": "disk"}
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    assert difference(run(loaded, BERT.batch()), run(model, BERT.batch())) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model: PreTrainedModel, tmp_path: Path, dtype: torch.dtype) -> None:
    model.to(dtype).save_pretrained(tmp_path)
    for requested in (dtype, "auto"):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=requested)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert difference(run(loaded, BERT.batch()), run(model, BERT.batch())) == 0
    widened = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert difference(run(widened, BERT.batch()), run(model.float(), BERT.batch())) == 0


def test_removed_projections_are_stored_with_size_zero(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert state["bert.encoder.layer.1.attention.self.query.weight"].shape == (0, 32)
    assert state["bert.encoder.layer.1.attention.self.query.bias"].shape == (0,)
    assert state["bert.encoder.layer.1.attention.output.dense.weight"].shape == (32, 0)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_dense_models_are_built_as_ever() -> None:
    model = BERT.model()
    assert sizes(model) == [4, 40, 4, 40, 4, 40]
    assert not hasattr(model.config, "pruning")


def test_hook_is_installed_once() -> None:
    hooked = PreTrainedModel.post_init
    install_build_hook()
    assert PreTrainedModel.post_init is hooked
    assert hooked.__name__ == "post_init"
