"""Opens the folder of a run that may have been interrupted: only the same run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .calibration import CalibrationData
from .config import PruningConfig, config_class_of, strategy_names
from .errors import PruningError
from .kept_steps import KeptSteps
from .offloading import device_of
from .run_fingerprint import Fingerprint, differences, fingerprint
from .whole_files import written_whole

FINGERPRINT_FILE = "fingerprint.json"


def check_resumes(config: PruningConfig) -> None:
    """Raises a PruningError where a strategy keeps nothing that an interrupted run could go on with."""
    if not config.resumes:
        able = ", ".join(name for name in strategy_names() if config_class_of(name).resumes)
        raise PruningError(
            f"resume_dir keeps what passes over the calibration data have found, and the {config.strategy} strategy"
            f" makes none that are long enough: leave it out. Strategies that can be resumed: {able}."
        )


def open_run(folder: Path, model: PreTrainedModel, config: PruningConfig, data: CalibrationData) -> KeptSteps:
    """What there is of a run, and where the rest of it will be kept: every process has a folder of its own in `folder`.

    Args:
        folder: made if it is not there.
        model: the dense model.
        config: of the run.
        data: the calibration data.

    Raises:
        PruningError: the folder is that of another run, with what differs; it holds other files or cannot be written
            to; or the data is no fixed sequence of batches.
    """
    # The number of a process's first batch is that of the process.
    own = folder / f"process-{data.batch_number(0)}"
    data.agree(lambda: _open_folder(own, fingerprint(model, config, data)))
    return KeptSteps(own, _common({file.name for file in own.glob("*.safetensors")}, data, device_of(model)))


def _open_folder(folder: Path, now: Fingerprint) -> None:
    file = folder / FINGERPRINT_FILE
    try:
        if file.is_file():
            _check_same(_read(file), now, folder.parent)
            return
        folder.mkdir(parents=True, exist_ok=True)
        # A run that was killed while it wrote its first file has left a hidden one, see `written_whole`.
        if any(not path.name.startswith(f".{FINGERPRINT_FILE}-") for path in folder.iterdir()):
            raise PruningError(f"{folder} holds files, but no {FINGERPRINT_FILE}: name another folder for resume_dir.")
        with written_whole(file) as temporary:
            temporary.write_text(json.dumps(now, indent=1), encoding="utf8")
    except OSError as error:
        raise PruningError(f"resume_dir {folder.parent} cannot be used: {error}. Name another folder.") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        stored = json.loads(file.read_text(encoding="utf8"))
    except ValueError as error:
        raise PruningError(f"{file} is damaged: {error}. Remove {file.parent.parent} to start anew.") from error
    return stored if isinstance(stored, dict) else {}


def _check_same(stored: dict[str, Any], now: Fingerprint, folder: Path) -> None:
    found = list(differences(stored, now))
    if found:
        raise PruningError(
            f"{folder} holds an interrupted run on something else. {'; '.join(found)}. Go on with what that run had, or"
            " remove the folder to start anew."
        )


def _common(names: set[str], data: CalibrationData, device: torch.device) -> set[str]:
    """The files that every process has: no process may wait for others that skip a step."""
    of_first = data.broadcast(sorted(names))
    there = data.sum(torch.tensor([float(name in names) for name in of_first], device=device))
    return {name for name, count in zip(of_first, there.tolist(), strict=True) if count == data.processes}
