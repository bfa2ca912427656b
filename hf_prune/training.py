"""Pruning in any training loop, and what an interrupted run leaves beside its checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import PruningConfig, training_for
from .errors import PruningError
from .processes import is_first_process, told_by_first
from .shards import has_shards
from .strategies.training import TrainingPruner, check_trains
from .whole_files import written_whole

FORMAT = "1"


def start_pruning(model: Any, config: PruningConfig, steps: int, optimizer: Any = None) -> TrainingPruner:
    """Prunes a model while a training loop of your own trains it.

        pruner = start_pruning(model, MagnitudePruningConfig(sparsity=0.6), steps=len(loader) * epochs)
        pruner.follow(optimizer)
        ...  # the loop, as it is
        result = pruner.finish()

    Args:
        model: the model that is trained, not its wrapper (before `accelerator.prepare`, or unwrapped), on the device
            where it is trained.
        config: the strategy and what it is to reach.
        steps: optimizer steps of the whole training.
        optimizer: what to follow, if there is one already; torch's, or Accelerate's.

    Raises:
        PruningError: the configuration does not fit the model, or the strategy does not work in training.
    """
    return _started(model, config, steps, optimizer, lambda pruner: pruner.begin())


def resume_pruning(
    model: Any, config: PruningConfig, steps: int, folder: str | os.PathLike[str], optimizer: Any = None
) -> TrainingPruner:
    """Goes on pruning where `save_pruning` wrote its side file; the model has that moment's weights already.

    Raises:
        PruningError: the folder holds no such file of this strategy, or one with other settings.
    """
    return _started(model, config, steps, optimizer, lambda pruner: _load(pruner, Path(folder)))


def _started(
    model: Any, config: PruningConfig, steps: int, optimizer: Any, start: Callable[[TrainingPruner], None]
) -> TrainingPruner:
    """A pruner after `start`; where that fails, nothing of it stays on the model."""
    check_trains(config, steps)
    pruner: TrainingPruner = training_for(config)(model, config, steps)
    try:
        start(pruner)
        if optimizer is not None:
            pruner.follow(optimizer)
    except BaseException:
        pruner.abandon()
        raise
    return pruner


def side_file(config: PruningConfig) -> str:
    """The name of the file beside a checkpoint that holds what a strategy needs to go on.

    Strategies that share no module may work side by side, also two of one kind: `target_modules` and `exclude_modules`
    are in the name.
    """
    modules = json.dumps([config.target_modules, config.exclude_modules])
    part = "" if modules == "[null, null]" else f"-{hashlib.sha256(modules.encode()).hexdigest()[:8]}"
    return f"pruning_state.{config.strategy}{part}.safetensors"


def save_pruning(pruner: TrainingPruner, folder: str | os.PathLike[str]) -> str:
    """Writes what going on takes into a checkpoint's folder, whole or not at all.

    Of a model that FSDP2 has sharded every process must call it; whole matrices come together one at a time, on the
    first process, which writes them. Any number of processes can go on with them.

    Returns:
        The file's SHA-256, by which it is found again.
    """
    tensors = pruner.state()
    if not has_shards(pruner.model):
        return write_state(pruner, tensors, folder)
    return str(told_by_first(write_state(pruner, tensors, folder) if is_first_process() else None))


def write_state(pruner: TrainingPruner, tensors: Mapping[str, torch.Tensor], folder: str | os.PathLike[str]) -> str:
    """Writes a pruner's state of now as `save_pruning` does, on this process."""
    target = Path(folder) / side_file(pruner.config)
    about = {
        "format": FORMAT,
        "step": str(pruner.step),
        "steps": str(pruner.steps),
        "config": json.dumps(pruner.config.to_dict()),
    }
    with written_whole(target) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, about)
    return digest(target)


def digest(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reload_pruning(pruner: TrainingPruner, folder: str | os.PathLike[str]) -> None:
    """Takes a running pruner back to an earlier checkpoint, whose weights the model has again.

    Raises:
        PruningError: as `resume_pruning`.
    """
    _load(pruner, Path(folder))


def _load(pruner: TrainingPruner, folder: Path) -> None:
    path = folder / side_file(pruner.config)
    if not path.is_file():
        others = sorted(file.name for file in folder.glob("pruning_state.*.safetensors"))
        found = f" It holds {', '.join(others)}, of another strategy or for other modules." if others else ""
        raise PruningError(
            f"{folder} holds no {path.name}, which {type(pruner.config).__name__} needs to go on.{found}"
        )
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            _check_same(pruner, about, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise PruningError(f"{path} is damaged: {error}.") from error
    pruner.go_on(tensors, int(about["step"]))


def _check_same(pruner: TrainingPruner, about: dict[str, str], path: Path) -> None:
    """A run goes on only with the settings and the length that it had."""
    if about.get("format") != FORMAT or not about.get("step", "").isdigit():
        raise PruningError(f"{path} has format {about.get('format')!r}; this hf_prune reads format {FORMAT}.")
    stored, now = json.loads(about["config"]), json.loads(json.dumps(pruner.config.to_dict()))
    differing = [name for name in {**stored, **now} if stored.get(name) != now.get(name)]
    if differing:
        texts = [f"{name}={stored.get(name)!r} (now {now.get(name)!r})" for name in differing]
        raise PruningError(f"{path} was written with {', '.join(texts)}. Go on with the settings that the run had.")
    if about["steps"] != str(pruner.steps):
        raise PruningError(
            f"{path} belongs to a training of {about['steps']} steps, but this one has {pruner.steps}: the schedule"
            " would not go on as it began."
        )
