"""An interrupted run goes on where it was and ends bit for bit as if nothing had happened; another run is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_prune import (
    FisherPruningConfig,
    HeadImportancePruningConfig,
    MagnitudePruningConfig,
    PruningConfig,
    PruningError,
    PruningResult,
    RandomPruningConfig,
    kept_steps,
    prune_model,
    sweep,
)
from hf_prune.kept_steps import KeptStep
from hf_prune.recovery import reconstruction
from hf_prune.scores import gradients
from hf_prune.strategies.fisher import strategy
from hf_prune.sweep import Sweep
from hf_prune.unfinished_runs import FINGERPRINT_FILE
from tests import killed_pruning
from tests.failing import Failing
from tests.offloaded import on_disk
from tests.small_models import Batch, case
from tests.witness import Witness

ROOT = Path(__file__).parents[1]
ITEM = case("bert", "classification")


def config(**settings: Any) -> FisherPruningConfig:
    budget = {} if "max_metric_drop" in settings else {"flops": 0.5}
    return FisherPruningConfig(**budget | {"round_to": 1, "latency_batch_size": 2} | settings)


# Those that take longest are left to the whole of the tests.
SLOW = ("trials", "backward", "floor", "gradients")
CONFIGS: dict[str, PruningConfig] = {
    "refit": config(),
    "mask tuning": config(recovery="mask_tuning"),
    "after refit": config(importance="after_refit", labels="model"),
    "trials": config(importance="blended"),
    "forward": config(importance="after_refit", iterative=True),
    "backward": config(iterative=True, order="backward"),
    "floor": config(max_metric_drop=0.5),
    "heads": HeadImportancePruningConfig(heads=0.5, iterations=2),
}


def unhurried(names: Iterable[str]) -> list[Any]:
    """Names as parameters, those of what takes long marked."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in names]


class Interruption:
    """Interrupts a run whenever it has written so many files.

    Attributes:
        written: the parts' names since `start` was called.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written: list[str] = []
        self._every = 0
        write = KeptStep.write

        def interrupted(step: KeptStep, part: str, *values: Any) -> None:
            write(step, part, *values)
            self.written.append(step._prefix + part)
            if self._every and len(self.written) % self._every == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(KeptStep, "write", interrupted)

    def start(self, every: int) -> None:
        """From now on."""
        self.written, self._every = [], every


def until_done(run: Callable[[], Any]) -> tuple[Any, int]:
    """Starts a run again until it ends well; what it returns, and how often it was interrupted."""
    for interruptions in range(200):
        try:
            return run(), interruptions
        except KeyboardInterrupt:
            continue
    raise AssertionError("no end in sight")


def as_rows(batches: list[Batch]) -> Dataset:
    return Dataset.from_dict({name: torch.cat([batch[name] for batch in batches]).tolist() for name in batches[0]})


def assert_same(one: PreTrainedModel, other: PreTrainedModel) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("name", unhurried(CONFIGS))
def test_interrupted_again_and_again(
    name: str, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was kept is done twice, and everything comes out bit for bit."""
    monkeypatch.setattr(kept_steps, "PAUSE", 0.0)
    monkeypatch.setattr(kept_steps, "PAUSE_PER_WRITING", 0.0)
    interruption = Interruption(monkeypatch)
    settings = CONFIGS[name]
    held_out = as_rows(batches) if name == "floor" else None

    def prune(folder: str) -> PruningResult:
        return prune_model(ITEM.model(), settings, batches[:3], eval_dataset=held_out, resume_dir=tmp_path / folder)

    whole, written = prune("whole"), interruption.written
    interruption.start(every=1 + len(written) // 4)
    resumed, interruptions = until_done(lambda: prune("resumed"))
    assert interruptions >= 3
    assert interruption.written == written
    assert resumed.plan == whole.plan
    assert resumed.report.notes == whole.report.notes
    assert_same(resumed.model, whole.model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", unhurried(killed_pruning.ENDS))
def test_a_killed_process(place: str, tmp_path: Path) -> None:
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    killed = subprocess.run(
        [sys.executable, killed_pruning.__file__, str(tmp_path / "run"), place],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert killed.returncode == 9, killed.stderr[-2000:]
    left = [file.name for file in (tmp_path / "run" / "process-0").iterdir()]
    assert any(place in name for name in left)
    assert_same(killed_pruning.prune(tmp_path / "run").model, killed_pruning.prune(tmp_path / "whole").model)
    assert list(tmp_path.iterdir()) == []


class Breaking:
    """Batches that are interrupted where the fifth is asked for, after so many whole passes."""

    def __init__(self, batches: list[Batch], passes: int) -> None:
        self.batches, self.left = batches, passes

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.batches):
            if number == 4:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            yield batch


def test_only_the_rest_of_the_batches_goes_through_the_model(
    batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_steps, "PAUSE", 0.0)
    monkeypatch.setattr(kept_steps, "PAUSE_PER_WRITING", 0.0)
    # All of the data is read for its fingerprint, for its mean length, and then for the gradients.
    data = Breaking(batches, 2)
    with pytest.raises(KeyboardInterrupt):
        prune_model(ITEM.model(), config(), data, resume_dir=tmp_path)
    scored: list[torch.Tensor] = []
    score = gradients._gated_loss

    def watched(model: PreTrainedModel, anatomy: Any, batch: Batch) -> Any:
        scored.append(batch["input_ids"])
        return score(model, anatomy, batch)

    monkeypatch.setattr(gradients, "_gated_loss", watched)
    prune_model(ITEM.model(), config(), batches, resume_dir=tmp_path)
    whole = [ids for ids in scored if len(ids) == 4]  # of two examples it is seen that they do not depend on each other
    assert len(whole) == 3
    assert all(torch.equal(ids, batch["input_ids"]) for ids, batch in zip(whole, batches[3:], strict=True))


def test_a_sweep(batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interruption = Interruption(monkeypatch)

    def curve(folder: str) -> Sweep:
        return sweep(ITEM.model(), config(), batches[:3], [0.7, 0.4], resume_dir=tmp_path / folder)

    whole, written = curve("whole"), interruption.written
    interruption.start(every=6)
    resumed, interruptions = until_done(lambda: curve("resumed"))
    assert interruptions == len(written) // 6 > 1
    assert interruption.written == written
    for one, other in zip(whole.points, resumed.points, strict=True):
        assert one.cut.plan == other.cut.plan
        assert all(torch.equal(one.cut.repairs[key].weight, other.cut.repairs[key].weight) for key in one.cut.repairs)


def test_a_choice_is_made_once(batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that are measured again would lead to another one."""
    with monkeypatch.context() as patch:
        patch.setattr(reconstruction, "find_targets", Failing(reconstruction.find_targets, 0, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prune_model(ITEM.model(), config(), batches, resume_dir=tmp_path / "run")
    monkeypatch.setattr(strategy, "select_units", Failing(strategy.select_units, 0, AssertionError))
    prune_model(ITEM.model(), config(), batches, resume_dir=tmp_path / "run")


def test_a_run_that_was_killed_at_its_first_file(batches: list[Batch], tmp_path: Path) -> None:
    left = tmp_path / "run" / "process-0" / ".fingerprint.json-0123"
    left.parent.mkdir(parents=True)
    left.touch()
    prune_model(ITEM.model(), config(), batches, resume_dir=tmp_path / "run")
    (tmp_path / "other" / "process-0").mkdir(parents=True)
    (tmp_path / "other" / "process-0" / "notes.txt").touch()
    with pytest.raises(PruningError, match=r"process-0 holds files, but no fingerprint\.json"):
        prune_model(ITEM.model(), config(), batches, resume_dir=tmp_path / "other")


def test_an_offloaded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interruption = Interruption(monkeypatch)
    results = []
    for place in ("memory", "disk"):
        model = ITEM.model() if place == "memory" else on_disk(ITEM.model(), tmp_path / "dense")
        data = [ITEM.batch(seed) for seed in range(3)]
        interruption.start(every=4)
        result, interruptions = until_done(partial(prune_model, model, config(), data, resume_dir=tmp_path / "run"))
        assert interruptions > 1
        result.save_pretrained(tmp_path / place)
        results.append(type(model).from_pretrained(tmp_path / place).state_dict())
    torch.testing.assert_close(*results)


class TestAnotherRun:
    @pytest.fixture
    def folder(self, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Of a run that was interrupted when it had scored the units."""
        with monkeypatch.context() as patch:
            Interruption(patch).start(every=1)
            with pytest.raises(KeyboardInterrupt):
                prune_model(ITEM.model(), config(), batches[:3], resume_dir=tmp_path)
        return tmp_path

    def refused(self, folder: Path, words: str, data: Any, settings: FisherPruningConfig, model: Any) -> None:
        held = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        witness = Witness(model)
        with pytest.raises(PruningError, match=words) as caught:
            prune_model(model, settings, data, resume_dir=folder)
        assert "to start anew" in str(caught.value)
        witness.check()
        assert held == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def test_other_settings(self, folder: Path, batches: list[Batch]) -> None:
        words = r"pruning: flops=0.5 \(now 0.4\)"
        self.refused(folder, words, batches[:3], config(flops=0.4), ITEM.model())

    def test_another_number_of_processes(self, folder: Path, batches: list[Batch]) -> None:
        """Each has a part, and parts of two processes are nothing for one."""
        file = folder / "process-0" / FINGERPRINT_FILE
        file.write_text(file.read_text().replace('"processes": 1', '"processes": 2'))
        self.refused(folder, r"software: processes=2 \(now 1\)", batches[:3], config(), ITEM.model())

    def test_another_weight(self, folder: Path, batches: list[Batch]) -> None:
        model = ITEM.model()
        model.classifier.bias.data[1] += 1
        self.refused(folder, r"weights: of classifier.bias \(\d+ in all", batches[:3], config(), model)

    def test_another_function_of_the_same_weights(self, folder: Path, batches: list[Batch]) -> None:
        model = ITEM.model(hidden_act="relu")
        self.refused(folder, r"model: hidden_act='gelu' \(now 'relu'\)", batches[:3], config(), model)

    def test_another_batch(self, folder: Path, batches: list[Batch]) -> None:
        data = [batches[0], batches[1] | {"labels": 1 - batches[1]["labels"]}, batches[2]]
        self.refused(folder, r"data: batch 1 \(3 in all, now 3\)", data, config(), ITEM.model())

    def test_other_numbers_of_batches(self, folder: Path, batches: list[Batch]) -> None:
        self.refused(folder, r"data: batch 2 \(3 in all, now 2\)", batches[:2], config(), ITEM.model())
        words = r"data: batch 3 and 1 more \(3 in all, now 5\)"
        self.refused(folder, words, batches[:5], config(), ITEM.model())

    def test_a_damaged_result(self, folder: Path, batches: list[Batch]) -> None:
        [file] = folder.rglob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-1])
        self.refused(folder, f"{file.name} does not hold what a run leaves", batches[:3], config(), ITEM.model())

    def test_a_damaged_fingerprint(self, folder: Path, batches: list[Batch]) -> None:
        (folder / "process-0" / FINGERPRINT_FILE).write_text("{")
        self.refused(folder, f"{FINGERPRINT_FILE} is damaged", batches[:3], config(), ITEM.model())


class TestRefusals:
    def test_data_in_another_order_each_time(self, batches: list[Batch], tmp_path: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(as_rows(batches).with_format("torch"), 4, shuffle=True, generator=generator)
        with pytest.raises(PruningError, match="without shuffle=True"):
            prune_model(ITEM.model(), config(), loader, resume_dir=tmp_path / "run")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_of_something_else(self, batches: list[Batch], tmp_path: Path) -> None:
        (tmp_path / "process-0").mkdir()
        (tmp_path / "process-0" / "notes.txt").touch()
        with pytest.raises(PruningError, match="name another folder for resume_dir"):
            prune_model(ITEM.model(), config(), batches, resume_dir=tmp_path)

    def test_no_folder_at_all(self, batches: list[Batch], tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(PruningError, match=r"resume_dir .*file cannot be used"):
            prune_model(ITEM.model(), config(), batches, resume_dir=tmp_path / "file")

    @pytest.mark.parametrize(
        "settings", [RandomPruningConfig(heads=0.5), MagnitudePruningConfig(sparsity=0.5)], ids=["units", "weights"]
    )
    def test_strategies_that_keep_nothing(self, settings: PruningConfig, batches: list[Batch], tmp_path: Path) -> None:
        with pytest.raises(PruningError, match=r"leave it out\. .* can be resumed: fisher, head_importance"):
            prune_model(ITEM.model(), settings, batches, resume_dir=tmp_path)
