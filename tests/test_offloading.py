"""Where weights are that are not in memory, and what is kept beside them."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel

from hf_prune.anatomy import UndoLog
from hf_prune.anatomy.parameters import change_parameter
from hf_prune.offloading import (
    copy_in_memory,
    copy_module,
    device_of,
    is_offloaded,
    named_tensors,
    onloaded,
    read_from,
    tensor_store,
)
from hf_prune.tensor_files import TensorFiles
from tests.family_models import main_head, sample
from tests.offloaded import ON_DISK, LoadedLayers, in_cpu_memory, on_disk


@pytest.fixture
def model() -> PreTrainedModel:
    return main_head("llama").model()


def on_meta(module: torch.nn.Module) -> set[bool]:
    return {parameter.is_meta for parameter in module.parameters()}


def test_places(model: PreTrainedModel, tmp_path: Path) -> None:
    assert not is_offloaded(model)
    assert device_of(model) == torch.device("cpu")
    assert read_from(model) == set()
    assert type(tensor_store(model)) is dict
    offloaded = on_disk(model, tmp_path / "dense", offload_folder=tmp_path / "offload")
    assert is_offloaded(offloaded)
    assert offloaded.device.type == "meta"
    assert device_of(offloaded) == torch.device("cpu")
    assert read_from(offloaded) == {tmp_path / "dense"}
    waiting = in_cpu_memory(model)
    assert is_offloaded(waiting)
    assert device_of(waiting) == torch.device("cpu")
    assert read_from(waiting) == set()
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert not is_offloaded(empty)
    assert device_of(empty).type == "meta"


@pytest.mark.parametrize("place", ["memory", "cpu", "disk"])
def test_every_tensor_with_its_values(place: str, model: PreTrainedModel, tmp_path: Path) -> None:
    expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    assert any("rotary" in name for name in expected)
    if place != "memory":
        model = in_cpu_memory(model) if place == "cpu" else on_disk(model, tmp_path)
    found = dict(named_tensors(model))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert on_meta(model) == {place != "memory"}


def test_layer_in_memory_for_a_while(model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offloaded = on_disk(model, tmp_path)
    expected = model(**sample(model)).logits
    loaded = LoadedLayers(monkeypatch)
    layer = offloaded.model.layers[1]
    with torch.no_grad(), onloaded(layer):
        assert on_meta(layer) == {False}
        assert torch.equal(layer.mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)
        before = loaded.reads
        assert before == len(list(layer.parameters()))
        torch.testing.assert_close(offloaded(**sample(model)).logits, expected)
        assert on_meta(layer) == {False}
        assert loaded.reads == 3 * before  # that of the two other layers
    assert on_meta(offloaded) == {True}
    with pytest.raises(KeyError, match="accident"), onloaded(layer):
        raise KeyError("accident")
    assert on_meta(offloaded) == {True}
    torch.testing.assert_close(offloaded(**sample(model)).logits, expected)


def test_copy_in_memory(model: PreTrainedModel, tmp_path: Path) -> None:
    """A plain module of its own, which goes as soon as it is dropped, without the garbage collector."""
    offloaded = on_disk(model, tmp_path)
    for source in (model, offloaded):
        copied = copy_in_memory(source.model.layers[1])
        assert on_meta(copied) == {False}
        assert not is_offloaded(copied)
        assert not any("forward" in part.__dict__ for part in copied.modules())
        hidden = torch.randn(2, 3, model.config.hidden_size)
        places = model.model.rotary_emb(hidden, torch.arange(3)[None])
        expected = model.model.layers[1](hidden, position_embeddings=places)
        assert torch.equal(copied(hidden, position_embeddings=places), expected)
        with torch.no_grad():
            copied.mlp.up_proj.weight.zero_()
        assert torch.equal(model.model.layers[1](hidden, position_embeddings=places), expected)
        weights = StorageWeakRef(copied.mlp.up_proj.weight.untyped_storage())
        gc.disable()
        try:
            del copied
            assert weights.expired()
        finally:
            gc.enable()
    assert on_meta(offloaded) == {True}


def test_copies_are_changed_on_their_own(model: PreTrainedModel, tmp_path: Path) -> None:
    offloaded = on_disk(model, tmp_path)
    source = offloaded.model.layers[0].mlp
    copied = copy_module(source)
    log = UndoLog()
    change_parameter(copied.up_proj, "weight", lambda old: 2 * old, log)
    dense = model.model.layers[0].mlp
    for module, factor in ((source, 1), (copied, 2)):
        with onloaded(module):
            assert torch.equal(module.up_proj.weight, factor * dense.up_proj.weight)
            assert torch.equal(module.down_proj.weight, dense.down_proj.weight)
    log.swap()
    with onloaded(copied):
        assert torch.equal(copied.up_proj.weight, dense.up_proj.weight)


def test_changes_keep_flags_and_shapes(model: PreTrainedModel, tmp_path: Path) -> None:
    """The same in memory and on disk, one change after the other, and taken back."""
    offloaded = on_disk(model, tmp_path)
    log = UndoLog()
    for one in (model, offloaded):
        projection = one.model.layers[2].mlp.down_proj
        projection.weight.requires_grad_(False)
        change_parameter(projection, "weight", lambda old: old[:, 3:], log)
        change_parameter(projection, "weight", lambda old: old[:, 1:] + 1, log)
        assert projection.weight.shape == (48, 36)
        assert not projection.weight.requires_grad
    with onloaded(offloaded.model.layers[2]):
        assert torch.equal(offloaded.model.layers[2].mlp.down_proj.weight, model.model.layers[2].mlp.down_proj.weight)
    log.roll_back()
    assert all(one.model.layers[2].mlp.down_proj.weight.shape == (48, 40) for one in (model, offloaded))
    torch.testing.assert_close(offloaded(**sample(model)).logits, model(**sample(model)).logits)


def test_tensors_in_files(tmp_path: Path) -> None:
    store = TensorFiles(tmp_path)
    [folder] = tmp_path.iterdir()
    first, second = torch.randn(3, 4).bfloat16(), torch.randn(0, 2)
    store["one"], store["other"] = first.T, second
    assert torch.equal(store["one"], first.T)
    assert store["other"].shape == (0, 2)
    assert list(store) == ["one", "other"]
    assert len(store) == 2
    held = store["one"]
    store["one"] = torch.ones(5)
    assert torch.equal(held, first.T)
    assert torch.equal(store["one"], torch.ones(5))
    store["one"].zero_()
    assert torch.equal(store["one"], torch.ones(5))
    del store["other"]
    assert len(list(folder.iterdir())) == 1
    with pytest.raises(KeyError):
        store["other"]
    again = copy.deepcopy(store)
    del store
    assert torch.equal(again["one"], torch.ones(5))
    del again
    assert not folder.exists()


def test_files_go_where_the_model_was_told(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "dense")
    told = type(model).from_pretrained(tmp_path / "dense", device_map=ON_DISK, offload_folder=tmp_path / "offload")
    change_parameter(told.lm_head, "weight", lambda old: old + 1, UndoLog())
    store = tensor_store(told)
    store["tensor"] = torch.ones(3)
    assert [file.suffix for file in (tmp_path / "offload").rglob("*.safetensors")] == [".safetensors"]
    not_told = type(model).from_pretrained(tmp_path / "dense", device_map=ON_DISK)
    assert isinstance(tensor_store(not_told), TensorFiles)
