"""What steps leave on disk: found by its place, checked before it is allocated, written whole and not too often."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hf_prune import PruningError, kept_steps
from hf_prune.kept_steps import KeptStep, KeptSteps

SIZES = {"values": (torch.float64, (-1, 2)), "flags": (torch.bool, (3,)), "count": (torch.int64, ())}
TENSORS = {
    "values": torch.arange(8.0, dtype=torch.float64).view(4, 2),
    "flags": torch.tensor([True, False, True]),
    "count": torch.tensor(7),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    own = tmp_path / "run" / "process-0"
    own.mkdir(parents=True)
    return own


def reopened(folder: Path) -> KeptSteps:
    return KeptSteps(folder, {file.name for file in folder.iterdir()})


def test_a_result_is_found_where_it_was_kept(folder: Path) -> None:
    steps = KeptSteps(folder)
    steps.begin("flops=0.5")
    steps.step("one")
    steps.step("two").write("layer.0/a b", TENSORS, "a text")
    again = reopened(folder)
    again.begin("flops=0.5")
    assert again.step("one").read("layer.0/a b", SIZES) is None
    kept = again.step("two").read("layer.0/a b", SIZES)
    assert kept is not None
    assert kept[1] == "a text"
    assert kept[0].keys() == TENSORS.keys()
    assert all(torch.equal(kept[0][name], value) for name, value in TENSORS.items())
    for label, name in (("flops=0.4", "two"), ("flops=0.5", "three")):
        again.begin(label)
        again.step("one")
        assert again.step(name).read("layer.0/a b", SIZES) is None


def test_what_this_run_has_kept_itself_is_not_found(folder: Path) -> None:
    """Only what every process had in the beginning."""
    steps = KeptSteps(folder)
    for _ in range(2):
        steps.begin("")
        step = steps.step("one")
        assert step.read("part", SIZES) is None
        step.write("part", TENSORS)


def test_nothing_is_kept_without_a_folder() -> None:
    step = KeptSteps().step("one")
    step.write("part", TENSORS)
    assert not step.keeps
    assert not step.is_due
    assert step.read("part", SIZES) is None
    KeptSteps().remove()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"values": torch.zeros(4, 3, dtype=torch.float64)}, r"values is F64 \[4, 3\], not torch.float64 \[-1, 2\]"),
        ({"values": torch.zeros(4, 2)}, r"values is F32"),
        ({"count": torch.zeros(1, dtype=torch.int64)}, r"count is I64 \[1\]"),
        ({"more": torch.zeros(1)}, "tensors named more are"),
        ({"flags": None}, "tensors named flags are"),
    ],
)
def test_something_else(changed: dict[str, torch.Tensor | None], words: str, folder: Path) -> None:
    tensors = {name: value for name, value in (TENSORS | changed).items() if value is not None}
    KeptSteps(folder).step("one").write("part", tensors)
    with pytest.raises(PruningError, match=words) as caught:
        reopened(folder).step("one").read("part", SIZES)
    assert f"Remove {folder.parent} to start anew" in str(caught.value)


def test_a_file_without_a_text(folder: Path) -> None:
    KeptSteps(folder).step("one").write("part", TENSORS)
    [file] = folder.iterdir()
    save_file(TENSORS, file)
    with pytest.raises(PruningError, match="does not hold what a run leaves there"):
        reopened(folder).step("one").read("part", SIZES)


def test_when_to_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a minute, and less often where writing takes long."""
    now, writing = [100.0], [0.0]

    def slow(*given: object) -> None:
        now[0] += writing[0]
        save_file(*given)

    monkeypatch.setattr(kept_steps.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(kept_steps, "save_file", slow)
    step = KeptStep(folder, "one-", ())
    for took, pause in ((0.0, 60), (1.0, 60), (10.0, 200)):
        now[0] += 59
        assert not step.is_due
        now[0] += 1
        assert step.is_due
        writing[0] = took
        step.write("part", TENSORS)
        now[0] += pause - 60


@pytest.mark.parametrize("error", [OSError, SafetensorError])
def test_a_full_disk_does_not_end_the_run(
    error: type[Exception], folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*given: object) -> None:
        raise error("No space left on device")

    monkeypatch.setattr(kept_steps, "save_file", full)
    with caplog.at_level(logging.WARNING):
        KeptSteps(folder).step("one").write("part", TENSORS)
    assert "an interrupted run will take this step again" in caplog.text
    assert list(folder.iterdir()) == []


def test_the_end(folder: Path) -> None:
    other = folder.parent / "process-1"
    other.mkdir()
    KeptSteps(folder).step("one").write("part", TENSORS)
    KeptSteps(folder).remove()
    assert list(folder.parent.iterdir()) == [other]
    KeptSteps(other).remove()
    assert not folder.parent.exists()
