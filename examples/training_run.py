"""What the training scripts share of a run: resuming it, and writing what it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from hf_prune import PruningResult

STATE_FILE = "trainer_state.json"


def checkpoint_to_resume(arguments: TrainingArguments) -> str | None:
    """The folder that `--resume_from_checkpoint` names; "last" is the last complete one in the output folder, if any.

    The Trainer writes its state file last, so a checkpoint without it was interrupted.
    """
    if arguments.resume_from_checkpoint != "last":
        return arguments.resume_from_checkpoint
    complete = [path.parent for path in Path(arguments.output_dir).glob(f"checkpoint-*/{STATE_FILE}")]
    return str(max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))) if complete else None


def average_losses(trainer: Trainer) -> None:
    """Has losses averaged over accumulated batches and over processes.

    Most models of transformers take the number of items that the Trainer counts for them, but their loss for these
    tasks is the batch's mean all the same; the Trainer would then add up what it should average.
    """
    trainer.model_accepts_loss_kwargs = False


def train(trainer: Trainer) -> None:
    """Trains, and writes the metrics of training."""
    found = trainer.train(resume_from_checkpoint=checkpoint_to_resume(trainer.args))
    trainer.log_metrics("train", found.metrics)
    trainer.save_metrics("train", found.metrics)
    trainer.save_state()


def evaluate(trainer: Trainer) -> dict[str, float]:
    """Evaluates, and writes the metrics: the loss and what the script computes."""
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return {name: value for name, value in metrics.items() if not name.endswith(("_runtime", "_per_second", "epoch"))}


def save(trainer: Trainer, result: PruningResult | None, metrics: Mapping[str, float], card: Mapping[str, Any]) -> None:
    """Writes the model: pruned with its card and side files, else as the Trainer does."""
    if result is None:
        trainer.save_model()
        return
    if metrics:
        result.report = replace(result.report, metrics={**result.report.metrics, "pruned": dict(metrics)})
    result.save_pretrained(
        trainer.args.output_dir,
        tokenizer=trainer.processing_class,
        card=card,
        is_main_process=trainer.is_world_process_zero(),
    )
