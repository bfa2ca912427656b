"""Carries out the runs of the study of head pruning, and finds what they have written."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from head_pruning_cells import PEAK_FILE, TRAINING, Settings, meta_training
from head_pruning_tasks import ALL_TASKS, CORPORA, write_training_rows
from study_models import run_metrics
from study_runs import DONE, EXAMPLES, Run, Runner

from hf_prune.strategies.single_shot.meta_training import HISTORY_FILE

BASE_MODEL = "minilm-base"


class HeadRunner(Runner):
    """Knows the scripts that are no Trainer's, too; their options may have several values."""

    def command(self, run: Run, folder: Path, models: Mapping[str, Path]) -> list[str]:
        if run.script == TRAINING:
            return super().command(run, folder, models)
        files = {name: self._places[place]() for name, place in run.files.items()}
        options: dict[str, Any] = {**run.options, **files, **models, "output_dir": folder}
        words = [sys.executable, str(EXAMPLES / run.script), *self._extra]
        for name, value in options.items():
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(str(each) for each in values if each is not True)]
        return words

    def pruner(self, settings: Settings) -> Path:
        """The folder of the meta-pruner."""
        return self.finish(meta_training(settings))

    def cost(self, run: Run) -> dict[str, float]:
        """Seconds of all trainings that a model has gone through, and the highest peak of their memory in bytes."""
        folders = [self.finish(each) for each in _history(run) if each.script == TRAINING]
        peaks = [json.loads((folder / PEAK_FILE).read_text(encoding="utf8"))["bytes"] for folder in folders]
        return {"seconds": sum(run_metrics(folder)["train_runtime"] for folder in folders), "peak_bytes": max(peaks)}


def make_runner(settings: Settings, arguments: argparse.Namespace) -> HeadRunner:
    """Knows the models and the rows that the runs read."""
    data, folder = arguments.data, arguments.cache / "rows"
    rows = {name: partial(write_training_rows, folder, task, settings.rows, data) for name, task in ALL_TASKS.items()}
    corpora = {option: partial(_corpora, data, option) for option in CORPORA}
    pruner = {meta_training(settings).folder: lambda: runner.pruner(settings)}
    runner = HeadRunner.of(arguments, {"minilm": lambda: arguments.models / BASE_MODEL, **rows, **corpora, **pruner})
    return runner


def pruner_summary(folder: Path) -> dict[str, Any]:
    """What the meta-training took, and its validation losses.

    Args:
        folder: of the pruner.
    """
    done = json.loads((folder / DONE).read_text(encoding="utf8"))
    history = json.loads((folder / HISTORY_FILE).read_text(encoding="utf8"))
    losses = [entry["validation_loss"] for entry in history]
    return {"seconds": done["seconds"], "episodes": done["options"]["episodes"], "losses": losses}


def _corpora(data: Path, option: str) -> list[str]:
    return [str(data / name) for name in CORPORA[option]]


def _history(run: Run | None) -> Iterator[Run]:
    """A run and those before it."""
    while run is not None:
        yield run
        run = run.parent
