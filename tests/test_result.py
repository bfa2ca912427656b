"""A pruned model is written, or pushed, as a whole folder or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hf_prune import FisherPruningConfig, PruningResult, prune_model
from hf_prune.report import result as result_module
from hf_prune.surgery import plan as plan_module
from tests.conformance.plans import difference, run
from tests.failing import Failing
from tests.small_models import Batch, case

BERT = case("bert", "classification")


@pytest.fixture
def batches() -> list[Batch]:
    return [BERT.batch(seed) for seed in range(4)]


@pytest.fixture
def result(batches: list[Batch]) -> PruningResult:
    return prune_model(BERT.model(), FisherPruningConfig(flops=0.5, latency_batch_size=2), batches)


@pytest.mark.parametrize("moment", [(plan_module, "save_file"), (result_module, "pruned_model_card")])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_failed_save_leaves_no_folder(
    result: PruningResult,
    moment: tuple[ModuleType, str],
    error: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(*moment, Failing(getattr(*moment), 0, error))
    with pytest.raises(error):
        result.save_pretrained(tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_write_the_same_folder_at_once(
    result: PruningResult, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is done just after this one has looked whether there is such a folder."""
    replace = os.replace

    def too_late(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "small" and not Path(target).exists():
            shutil.copytree(source, target)
        replace(source, target)

    monkeypatch.setattr(result_module.os, "replace", too_late)
    result.save_pretrained(tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    loaded = BERT.auto_class.from_pretrained(tmp_path / "small")
    assert difference(run(loaded, batches[0]), run(result.model, batches[0])) == 0


def test_failed_save_leaves_an_earlier_one(
    result: PruningResult, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result.save_pretrained(tmp_path / "small")
    before = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    other = prune_model(BERT.model(seed=1), FisherPruningConfig(flops=0.3, latency_batch_size=2), batches)
    with monkeypatch.context() as patch:
        failing = Failing(result_module.pruned_model_card, 0, KeyboardInterrupt)
        patch.setattr(result_module, "pruned_model_card", failing)
        with pytest.raises(KeyboardInterrupt):
            other.save_pretrained(tmp_path / "small")
    assert {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    other.save_pretrained(tmp_path / "small")
    loaded = BERT.auto_class.from_pretrained(tmp_path / "small")
    assert difference(run(loaded, batches[0]), run(other.model, batches[0])) == 0


def test_pushed_as_one_commit(result: PruningResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, Any]] = []
    patterns: set[str] = set()

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", token))

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            calls.append(("create", (repo_id, options)))
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: Any) -> Any:
            calls.append(("upload", repo_id))
            patterns.update(delete_patterns)
            for path in Path(folder_path).iterdir():
                (tmp_path / path.name).write_bytes(path.read_bytes())
            return type("Commit", (), {"commit_url": "https://example.org/commit"})

    monkeypatch.setattr(result_module, "HfApi", Api)
    address = result.push_to_hub("small", private=True, token="secret")
    assert address == "https://example.org/commit"
    assert calls == [
        ("token", "secret"),
        ("create", ("small", {"private": True, "exist_ok": True})),
        ("upload", "me/small"),
    ]
    assert {"model.safetensors", "pytorch_model.bin", "pruning_masks.safetensors"} < patterns
    loaded = BERT.auto_class.from_pretrained(tmp_path)
    assert difference(run(loaded, BERT.batch()), run(result.model, BERT.batch())) == 0
    assert "secret" not in "".join(
        path.read_text() for path in tmp_path.glob("*.[jm]*") if path.suffix != ".safetensors"
    )


def test_a_process_that_writes_nothing_uploads_nothing(result: PruningResult, monkeypatch: pytest.MonkeyPatch) -> None:
    api = type("Api", (), {"__init__": lambda self, token=None: None})
    monkeypatch.setattr(result_module, "HfApi", api)
    assert result.push_to_hub("small", is_main_process=False) == ""


def test_a_folder_whose_parent_is_not_ours(
    result: PruningResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mounted volume: nothing is written beside it."""
    places: list[Path] = []
    mkdtemp = result_module.tempfile.mkdtemp

    def noted(prefix: str, dir: Path) -> str:
        places.append(Path(dir))
        return str(mkdtemp(prefix=prefix, dir=dir))

    monkeypatch.setattr(result_module.tempfile, "mkdtemp", noted)
    target = tmp_path / "volume"
    target.mkdir()
    result.save_pretrained(target)
    assert places[0] == target
    assert not list(target.glob(".volume-*"))
    BERT.auto_class.from_pretrained(target)


class Templates:
    """Stands for a tokenizer with several chat templates, which it writes into a folder."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def save_pretrained(self, folder: Path) -> None:
        (folder / "additional_chat_templates").mkdir()
        for name in self.names:
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(name)


def test_folders_in_the_folder(result: PruningResult, tmp_path: Path) -> None:
    for names in (("rag", "tools"), ("tools",)):
        result.save_pretrained(tmp_path / "small", tokenizer=Templates(*names))
        folder = tmp_path / "small" / "additional_chat_templates"
        assert {file.stem for file in folder.iterdir()} == set(names)
        assert folder.stat().st_mode & 0o700 == 0o700
        assert (folder / "tools.jinja").stat().st_mode & 0o111 == 0
