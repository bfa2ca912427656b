"""Trainings as runs of the example scripts, each in a process and a folder of its own, so that a long study resumes."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1]
DONE = "finished.json"
# When a run was begun, and how long earlier attempts have taken.
ATTEMPT = "attempt.json"


class RunFailed(Exception):
    """A script ended with an error; the message names its log."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        script: of `examples`.
        name: for its folder.
        options: by name; True for a flag, None for an option that is left out.
        files: options whose values are names of files or folders, see `Runner`.
        parent: the run whose model it starts from.
        teacher: the run whose model it learns from.
    """

    script: str
    name: str
    options: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    parent: Run | None = None
    teacher: Run | None = None

    def settings(self) -> dict[str, Any]:
        """Everything that its model depends on, except for the code."""
        parent = None if self.parent is None else self.parent.settings()
        # Kept models are found by these settings: what most runs do not have is only among those of the others.
        teacher = {} if self.teacher is None else {"teacher": self.teacher.settings()}
        options, files = dict(self.options), dict(self.files)
        return {"script": self.script, "options": options, "files": files, "parent": parent, **teacher}

    @property
    def folder(self) -> str:
        """A readable name and a digest of the settings."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}"


class Runner:
    """Carries runs out, each once.

    Args:
        folder: where the runs' folders are.
        places: what gives the path of a file that runs name, and writes the file where that is to be done first.
        extra: options of every run that change nothing in its result, such as `--use_cpu`.
        threads: of every process; None for PyTorch's own choice.
    """

    def __init__(
        self,
        folder: Path,
        places: Mapping[str, Callable[[], Path]],
        extra: tuple[str, ...] = (),
        threads: int | None = None,
    ) -> None:
        self._folder, self._places, self._extra = folder, places, extra
        self._environment = dict(os.environ)
        if threads:
            self._environment["OMP_NUM_THREADS"] = str(threads)

    @classmethod
    def of(cls, arguments: argparse.Namespace, places: Mapping[str, Callable[[], Path]]) -> Runner:
        """Keeps its runs in the cache that a benchmark's options name."""
        extra = ("--use_cpu",) if arguments.device.type == "cpu" else ()
        return cls(arguments.cache / "runs", places, extra, arguments.threads)

    def finish(self, run: Run) -> Path:
        """The folder with a run's model, which is trained first where that has not happened yet, after those it needs.

        Raises:
            RunFailed: a script ended with an error.
        """
        folder = self._folder / run.folder
        if (folder / DONE).is_file():
            return folder
        needed = {"model_name_or_path": run.parent, "teacher_name_or_path": run.teacher}
        models = {name: self.finish(other) for name, other in needed.items() if other is not None}
        folder.mkdir(parents=True, exist_ok=True)
        log = folder.parent / f"{folder.name}.log"
        command = self.command(run, folder, models)  # files that it names may take a training to make
        start, before = time.time(), _seconds_before(folder, log)
        (folder / ATTEMPT).write_text(json.dumps({"start": start, "before": before}), encoding="utf8")
        self._execute(command, log)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        seconds = round(before + time.time() - start, 1)
        (folder / DONE).write_text(json.dumps({"seconds": seconds, **run.settings()}, indent=1), encoding="utf8")
        return folder

    def command(self, run: Run, folder: Path, models: Mapping[str, Path]) -> list[str]:
        """What a user would type; a run that was interrupted goes on.

        Args:
            run: which.
            folder: of its model.
            models: options that name models of other runs.
        """
        options: dict[str, Any] = dict(run.options)
        options |= {name: self._places[place]() for name, place in run.files.items()}
        options |= models
        options |= {"output_dir": folder, "resume_from_checkpoint": "last", "report_to": "none"}
        texts = [sys.executable, str(EXAMPLES / run.script), "--do_train", *self._extra]
        for name, value in options.items():
            if value is not None:
                texts += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return texts

    def _execute(self, command: list[str], log: Path) -> None:
        with log.open("a", encoding="utf8") as file:
            file.write(" ".join(command) + "\n")
            file.flush()
            ended = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        if ended.returncode:
            last = log.read_text(encoding="utf8", errors="replace").strip().splitlines()[-1]
            raise RunFailed(f"{Path(command[1]).name} ended with status {ended.returncode}: {last} (all of it: {log})")


def _seconds_before(folder: Path, log: Path) -> float:
    """How long the attempts at a run have taken that were interrupted: each until the last line of its log."""
    path = folder / ATTEMPT
    if not path.is_file() or not log.is_file():
        return 0.0
    last = json.loads(path.read_text(encoding="utf8"))
    return float(last["before"] + max(0.0, log.stat().st_mtime - last["start"]))
