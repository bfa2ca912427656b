"""Spectral normalisation while a Trainer trains, folded into the weights at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from training_run import checkpoint_to_resume
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_prune.gates import add_spectral_norm, load_spectral_state, remove_spectral_norm, spectral_state

SIDE_FILE = "spectral_norm.safetensors"


class SpectralNormCallback(TrainerCallback):
    """Keeps the largest singular values of the layers' matrices at a bound, or below.

    Checkpoints are ordinary ones; a file beside each lets an interrupted run go on bit for bit. Where a strategy prunes
    in the same training, this callback comes before its own: it is to cut ordinary matrices.
    """

    def __init__(self, bound: float) -> None:
        self._bound = bound

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Before the model is wrapped, and before a checkpoint is loaded into it."""
        add_spectral_norm(kwargs["model"], bound=self._bound)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        folder = checkpoint_to_resume(args)
        if folder is not None:
            load_spectral_state(kwargs["model"], load_file(Path(folder) / SIDE_FILE))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_file(spectral_state(kwargs["model"]), folder / SIDE_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        remove_spectral_norm(kwargs["model"])
