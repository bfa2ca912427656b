"""What the training scripts share of a run: pruning in it, resuming it, and writing what it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from script_end import end_processes
from transformers import Trainer, TrainingArguments

from hf_prune import PruningCallback, PruningConfig, PruningResult

STATE_FILE = "trainer_state.json"


def checkpoint_to_resume(arguments: TrainingArguments) -> str | None:
    """The folder that `--resume_from_checkpoint` names; "last" is the last complete one in the output folder, if any.

    The Trainer writes its state file last, so a checkpoint without it was interrupted.
    """
    if arguments.resume_from_checkpoint != "last":
        return arguments.resume_from_checkpoint
    complete = [path.parent for path in Path(arguments.output_dir).glob(f"checkpoint-*/{STATE_FILE}")]
    return str(max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]))) if complete else None


def make_callback(config: PruningConfig | None, arguments: TrainingArguments, **teacher: Any) -> PruningCallback | None:
    """What prunes the model while it is trained; None without a strategy.

    Args:
        config: the strategy's settings.
        arguments: of the training.
        teacher: arguments of the callback that concern a teacher.

    Raises:
        ValueError: there is a strategy or a teacher, but nothing that it could do.
    """
    if config is None:
        if teacher.get("teacher") is not None:
            raise ValueError("--teacher_name_or_path is for pruning: add --strategy.")
        return None
    if not arguments.do_train:
        raise ValueError("--strategy prunes while the model is trained: add --do_train.")
    return PruningCallback(config, **teacher)


def run_training(trainer: Trainer, callback: PruningCallback | None, dataset_name: str | None) -> None:
    """Trains, evaluates and saves, as far as the arguments ask for it."""
    average_losses(trainer)
    if trainer.args.do_train:
        train(trainer)
    metrics = evaluate(trainer) if trainer.args.do_eval else {}
    if trainer.args.do_train:
        card = {"dataset": dataset_name} if dataset_name else {}
        save(trainer, None if callback is None else callback.result, metrics, card)
    end_processes(trainer.accelerator)


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
