"""Results of pruning single weights are written densely, or as bitmasks in less space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hf_prune import MagnitudePruningConfig, PruningError, PruningResult, RandomPruningConfig, prune_model
from hf_prune.report import WeightReport, report_from_dict
from hf_prune.report import result as result_module
from hf_prune.surgery.mask_plan import MaskPlan
from tests.small_models import case
from tests.sparse_models import assert_same_weights, is_packed_folder, stored

BERT = case("bert", "classification")


@pytest.fixture
def result() -> PruningResult:
    return prune_model(BERT.model(), MagnitudePruningConfig(sparsity=0.9))


def test_the_report_says_where_the_zeros_are(result: PruningResult) -> None:
    assert isinstance(result.report, WeightReport)
    assert isinstance(result.plan, MaskPlan)
    zeros = {row.name: row.removed for row in result.report.matrices}
    for name, removed in zeros.items():
        parameter = result.model.get_parameter(name)
        assert removed == int((parameter == 0).sum()) == int((~result.plan.masks[name]).sum())
    assert result.report.parameters == result.model.num_parameters()
    assert "bert.pooler.dense.weight" in zeros
    assert "classifier.weight" not in zeros


@pytest.mark.parametrize("form", ["dense", "bitmask"])
def test_what_is_written(result: PruningResult, form: str, tmp_path: Path) -> None:
    result.save_pretrained(tmp_path, format=form)
    assert is_packed_folder(tmp_path) == (form == "bitmask")
    assert_same_weights(BERT.auto_class.from_pretrained(tmp_path), result.model)
    report = json.loads((tmp_path / "pruning_report.json").read_text())
    assert report_from_dict(report) == result.report
    loaded, plan = MaskPlan.load(tmp_path), result.plan
    assert isinstance(plan, MaskPlan)
    assert {name: mask.tolist() for name, mask in loaded.masks.items()} == {
        name: mask.tolist() for name, mask in plan.masks.items()
    }
    card = (tmp_path / "README.md").read_text()
    assert ("import hf_prune" in card) == (form == "bitmask")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0[1, 2]  "], ids=["empty", "no header"])
def test_damaged_masks_are_refused(result: PruningResult, damage: bytes, tmp_path: Path) -> None:
    result.save_pretrained(tmp_path)
    (tmp_path / "pruning_masks.safetensors").write_bytes(damage)
    with pytest.raises(PruningError, match=r"pruning_masks\.safetensors is damaged"):
        MaskPlan.load(tmp_path)


@pytest.mark.parametrize("shapes", ["[1]", "{", '{"a": [-1]}', '{"a": [4, 4]}', '{"b": [8]}'])
def test_shapes_of_masks_are_checked(shapes: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1, dtype=torch.uint8)}, tmp_path / "pruning_masks.safetensors", {"shapes": shapes})
    with pytest.raises(PruningError, match=r"damaged|takes 2 bytes, got"):
        MaskPlan.load(tmp_path)


def test_shards_are_packed_too(result: PruningResult, tmp_path: Path) -> None:
    result.save_pretrained(tmp_path, format="bitmask", max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert "import hf_prune" in (tmp_path / "README.md").read_text()
    assert_same_weights(BERT.auto_class.from_pretrained(tmp_path), result.model)


def test_a_model_that_was_only_cut_is_written_as_ever(tmp_path: Path) -> None:
    result = prune_model(BERT.model(), RandomPruningConfig(params=0.5, latency_batch_size=1))
    for form in ("dense", "bitmask"):
        result.save_pretrained(tmp_path / form, format=form)
    names = [sorted(file.name for file in (tmp_path / form).iterdir()) for form in ("dense", "bitmask")]
    assert names[0] == names[1]
    assert not is_packed_folder(tmp_path / "bitmask")
    dense, other = (stored(tmp_path / form) for form in ("dense", "bitmask"))
    assert all(dense[name].equal(other[name]) for name in dense)
    assert "stored as their other values" not in (tmp_path / "bitmask" / "README.md").read_text()


def test_an_unknown_format_is_refused_before_anything_is_written(result: PruningResult, tmp_path: Path) -> None:
    for save in (result.save_pretrained, result.push_to_hub):
        with pytest.raises(PruningError, match="format='zip' is unknown; use one of dense, bitmask"):
            save(str(tmp_path / "sparse"), format="zip")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_results_side_files_go(result: PruningResult, tmp_path: Path) -> None:
    prune_model(BERT.model(), RandomPruningConfig(params=0.5, latency_batch_size=1)).save_pretrained(tmp_path)
    (tmp_path / "mine.txt").write_text("notes")
    assert (tmp_path / "pruning_plan.safetensors").is_file()
    result.save_pretrained(tmp_path)
    assert not (tmp_path / "pruning_plan.safetensors").exists()
    assert (tmp_path / "pruning_masks.safetensors").is_file()
    assert (tmp_path / "mine.txt").read_text() == "notes"


def test_the_format_is_that_of_an_upload_too(result: PruningResult, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[bool] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: Any) -> Any:
            packed.append(is_packed_folder(folder_path))
            return type("Commit", (), {"commit_url": "https://example.org/commit"})

    monkeypatch.setattr(result_module, "HfApi", Api)
    result.push_to_hub("sparse")
    result.push_to_hub("sparse", format="bitmask")
    assert packed == [False, True]
