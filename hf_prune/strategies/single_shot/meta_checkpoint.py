"""What an interrupted meta-training goes on from: one safetensors file with JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...errors import PruningError
from ...whole_files import written_whole
from .meta_arguments import MetaTrainingArguments

STATE_FILE = "meta_training.safetensors"
FORMAT = "1"
# Settings that a run may go on with others of.
_FREE = ("output_dir", "episodes")


@dataclass
class MetaTrainingState:
    """Where a training is; everything that is drawn follows from the seed and the number of the episode.

    Attributes:
        update: optimizer steps made.
        best_loss: the lowest validation loss so far.
        history: one entry per validation: `update`, `validation_loss`, and but for the first one `training_loss`.
        tensors: of the pruner ("pruner.…"), of the best one so far ("best.…") and of the optimizer ("optimizer.…").
    """

    update: int = 0
    best_loss: float = float("inf")
    history: list[dict[str, float]] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with `name.`, without it."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def save_state(folder: Path, state: MetaTrainingState, settings: Mapping[str, Any]) -> None:
    """Writes the state whole or not at all.

    Args:
        folder: is made if it is not there.
        state: where the training is.
        settings: of the training and of the pruner, JSON-serialisable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "format": FORMAT,
        "update": str(state.update),
        "best_loss": repr(state.best_loss),
        "history": json.dumps(state.history),
        "settings": json.dumps(settings),
    }
    with written_whole(folder / STATE_FILE) as temporary:
        # Copies, because the file format takes no two tensors that share memory.
        save_file({name: value.clone() for name, value in state.tensors.items()}, temporary, about)


def load_state(folder: Path, settings: Mapping[str, Any]) -> MetaTrainingState | None:
    """The state of an interrupted run in a folder, or None where there is none.

    Raises:
        PruningError: a damaged file, one of another version, or of a run with other settings.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise PruningError(f"{path} is damaged: {error}. Remove it to begin anew.") from error
    if about.get("format") != FORMAT:
        raise PruningError(f"{path} has format {about.get('format')!r}; this hf_prune reads format {FORMAT}.")
    stored, now = json.loads(about["settings"]), json.loads(json.dumps(settings))
    differing = [name for name in {**stored, **now} if name not in _FREE and stored.get(name) != now.get(name)]
    if differing:
        texts = [f"{name}={stored.get(name)!r} (now {now.get(name)!r})" for name in differing]
        raise PruningError(f"{path} was written with {', '.join(texts)}. Go on with the settings that the run had.")
    return MetaTrainingState(int(about["update"]), float(about["best_loss"]), json.loads(about["history"]), tensors)


def settings_of(arguments: MetaTrainingArguments, pruner: Any, rows: list[int]) -> dict[str, Any]:
    """What a run must not change when it goes on: its settings, the pruner's sizes and the data sets' rows."""
    config = {name: getattr(pruner.config, name) for name in ("map_size", "base_filters")}
    return {**vars(arguments), **config, "rows": rows}
