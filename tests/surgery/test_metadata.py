"""Metadata is written small, and nothing in it is believed before it has been checked."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from hf_prune import FisherPruningConfig, PruningError, describe_model
from hf_prune.surgery import PruningPlan, loading, pruning_of, shrink_model, write_metadata
from tests.conformance.plans import prune
from tests.small_models import case

BERT = case("bert", "classification")
ATTENTION, FILTER = "encoder.layer.0.attention", "encoder.layer.0.intermediate"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    model = BERT.model()
    prune(model, BERT.batch())
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def metadata(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "config.json").read_text())["pruning"]


def build(metadata: Any, **changes: Any) -> BertForSequenceClassification:
    return BertForSequenceClassification(BERT.config(**changes, pruning=metadata))


def changed(metadata: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of the metadata with one entry set, or removed where the value is `...`."""
    result = copy.deepcopy(metadata)
    target = result
    for name in path[:-1]:
        target = target[name]
    if value is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return result


BLOCK = ("blocks", ATTENTION)
BAD = {
    "negative": ((*BLOCK, "kept"), -1, r"keeps -1 of 4 units; 0 ≤ kept ≤ of"),
    "negative original size": ((*BLOCK, "of"), -4, r"keeps 2 of -4 units"),
    "more than there were": ((*BLOCK, "kept"), 5, r"keeps 5 of 4 units"),
    "astronomical": ((*BLOCK, "kept"), 10**15, r"keeps 10{15} of 4 units"),
    "astronomical in a dense block": ((*BLOCK, "of"), 10**15, r"was cut from 10{15} units, but this config builds 4"),
    "a fraction": ((*BLOCK, "kept"), 1.5, r"keeps 1\.5 of 4 units"),
    "a truth value": ((*BLOCK, "kept"), True, r"keeps True of 4 units"),
    "text": ((*BLOCK, "kept"), "2", r"keeps '2' of 4 units"),
    "null": ((*BLOCK, "kept"), None, r"keeps None of 4 units"),
    "size missing": ((*BLOCK, "kept"), ..., r"encoder\.layer\.0\.attention must have 'kept' and 'of'"),
    "foreign entry in a block": ((*BLOCK, "code"), "import os", r"must have 'kept' and 'of'"),
    "block of another type": (BLOCK, [2, 4], r"must have 'kept' and 'of'"),
    "block that is not there": (("blocks", "encoder.layer.9.attention"), {"kept": 1, "of": 4}, "names the block"),
    "heads out of range": ((*BLOCK, "heads"), [1, 4], r"keeps 2 of 4 units, but lists heads \[1, 4\]"),
    "negative heads": ((*BLOCK, "heads"), [-1, 2], r"keeps 2 of 4 units, but lists heads"),
    "as many heads as not kept": ((*BLOCK, "heads"), [1], r"keeps 2 of 4 units, but lists heads \[1\]"),
    "repeated heads": ((*BLOCK, "heads"), [1, 1], r"keeps 2 of 4 units, but lists heads"),
    "heads of another type": ((*BLOCK, "heads"), {"0": 1}, r"keeps 2 of 4 units, but lists heads"),
    "unordered heads": ((*BLOCK, "heads"), [3, 1], r"but lists heads \[3, 1\]"),
    "heads missing": ((*BLOCK, "heads"), ..., r"but lists heads None"),
    "heads of filters": (("blocks", FILTER, "heads"), [0], r"intermediate keeps 20 of 40 units, but lists heads \[0\]"),
    "blocks missing": (("blocks",), ..., "lacks blocks"),
    "blocks of another type": (("blocks",), [1], r"\['blocks'\] must be a dictionary, got list"),
    "format missing": (("format",), ..., "lacks format"),
    "format of the future": (("format",), 2, "has format 2, and this hf_prune reads format 1"),
    "foreign count of weights": (
        ("weights",),
        {"removed": 1, "of": 2, "matrices": 1, "format": 1},
        "must say how many weights were 'removed' 'of'",
    ),
    "more weights removed than there are": (
        ("weights",),
        {"removed": 3, "of": 2, "matrices": 1},
        "must say how many weights were 'removed' 'of'",
    ),
    "foreign field": (("module",), "os", "has unknown module; known fields are"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_metadata_is_refused_before_anything_is_cut(
    name: str, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, value, message = BAD[name]
    monkeypatch.setattr(loading, "cut_model", lambda *arguments, **named: pytest.fail("cut before it was checked"))
    with pytest.raises(PruningError, match=message):
        build(changed(metadata, path, value))


@pytest.mark.parametrize(
    "value", [7, "magnitude", ["blocks"], True, {}, {"method": "movement"}, {"library": "other", "blocks": {}}]
)
def test_what_others_have_put_under_the_key_is_not_looked_at(value: Any) -> None:
    model = build(value)
    assert [block.units for block in describe_model(model).blocks] == [
        block.units for block in describe_model(build(None)).blocks
    ]
    assert pruning_of(model.config) is None


def test_first_layer_of_a_decoder_needs_a_head() -> None:
    entry = {"kept": 0, "of": 4, "heads": []}
    decoder = case("bert", "causal")
    with pytest.raises(PruningError, match="keeps 0 units, but at least 1 must stay"):
        decoder.model_class(decoder.config(pruning={"format": 1, "blocks": {ATTENTION: entry}}))
    model = build({"format": 1, "blocks": {ATTENTION: entry}})
    assert describe_model(model).attentions[0].units == 0


def test_bad_metadata_in_a_checkpoint_is_refused_on_loading(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["pruning"]["blocks"][FILTER]["kept"] = -3
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(PruningError, match="keeps -3 of 40 units"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_config_edited_after_pruning(metadata: dict[str, Any]) -> None:
    with pytest.raises(PruningError, match=r"was cut from 40 units, but this config builds 48\. The config was edited"):
        build(metadata, intermediate_size=48)
    with pytest.raises(PruningError, match=r"names the block 'encoder\.layer\.2\.attention'"):
        build(metadata, num_hidden_layers=2)


@pytest.mark.parametrize(("block", "kept"), [(FILTER, 21), (ATTENTION, 1)])
def test_weights_that_do_not_fit_the_metadata(checkpoint: Path, tmp_path: Path, block: str, kept: int) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    entry = config["pruning"]["blocks"][block]
    assert entry["kept"] != kept
    entry |= {"kept": kept} | ({"heads": list(range(kept))} if "heads" in entry else {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(RuntimeError, match=r"ignore_mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_metadata_of_another_library_is_left_alone() -> None:
    model = build({"library": "other", "anything": [1, 2]})
    assert [block.units for block in describe_model(model).attentions] == [4, 4, 4]
    assert pruning_of(model.config) is None
    assert model.config.pruning == {"library": "other", "anything": [1, 2]}


def test_blocks_of_parts_that_are_not_built_are_left_out(metadata: dict[str, Any]) -> None:
    expected = [block.units for block in describe_model(build(metadata)).blocks]
    for name in ("../classifier", "decoder.layer.0.attention"):
        model = build(changed(metadata, ("blocks", name), {"kept": 1, "of": 4}))
        assert [block.units for block in describe_model(model).blocks] == expected
        assert model.classifier.weight.shape == (3, 32)


def test_family_of_the_future(checkpoint: Path, tmp_path: Path) -> None:
    """Blocks that this version cannot find are not cut, so the checkpoint's weights do not fit."""
    config = json.loads((checkpoint / "config.json").read_text())
    blocks = config["pruning"]["blocks"]
    config["pruning"]["blocks"] = {f"mixers.{name}": entry for name, entry in blocks.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_heads_are_counted_in_the_original_model() -> None:
    model = BERT.model()
    for plan in ({ATTENTION: (1, 2, 3), FILTER: tuple(range(1, 30))}, {ATTENTION: (0, 2), FILTER: (5, 6)}):
        anatomy = describe_model(model)
        shrink_model(model, anatomy, PruningPlan(plan))
        write_metadata(model, anatomy, PruningPlan(plan), {"strategy": "fisher"}, {}, {})
    blocks = model.config.pruning["blocks"]
    assert blocks[ATTENTION] == {"kept": 2, "of": 4, "heads": [1, 3]}
    assert blocks[FILTER] == {"kept": 2, "of": 40}
    assert blocks["encoder.layer.1.attention"] == {"kept": 4, "of": 4, "heads": [0, 1, 2, 3]}


def test_another_model_with_the_same_config_stays_dense(tmp_path: Path) -> None:
    model = BERT.model()
    other = type(model)(model.config)
    shared, settings = model.config, copy.deepcopy(model.config.to_dict())
    plan = PruningPlan({ATTENTION: (1, 2)}, removed_layers=("encoder.layer.1",))
    anatomy = describe_model(model)
    log = shrink_model(model, anatomy, plan)
    write_metadata(model, anatomy, plan, {"strategy": "by hand"}, {}, {})
    assert other.config is shared
    assert shared.to_dict() == settings
    assert pruning_of(model.config) is not None
    held = [module.config for module in model.modules() if hasattr(module, "config")]
    assert len(held) > 3
    assert all(config is model.config for config in held)
    other.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert [block.units for block in describe_model(loaded).blocks] == [4, 40] * 3
    log.roll_back()
    assert all(module.config is shared for module in model.modules() if hasattr(module, "config"))
    assert pruning_of(shared) is None


def test_config_of_bert_base_stays_below_20_kb() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_labels=3))
    anatomy = describe_model(model)
    plan = PruningPlan(
        {block.key: tuple(range(block.units - (2 if block.kind == "attention" else 1))) for block in anatomy.blocks}
    )
    shrink_model(model, anatomy, plan)
    cost = {"sequence_length": 128, "dense": {"flops": 10**11, "parameters": 10**8}, "pruned": {"flops": 10**11}}
    metrics = {side: {"loss": 0.123456789, "accuracy": 0.987654321} for side in ("dense", "pruned")}
    strategy = FisherPruningConfig(flops=0.5, target_modules=[block.key for block in anatomy.blocks]).to_dict()
    write_metadata(model, anatomy, plan, strategy, cost, metrics)
    assert len(model.config.to_json_string().encode()) < 20_000
