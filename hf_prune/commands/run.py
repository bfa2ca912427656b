"""`hf-prune run`: a fine-tuned model and labelled rows in, a smaller checkpoint out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..api import prune_model
from ..config import PruningConfig
from ..errors import PruningError
from ..report.result import PruningResult
from .arguments import DataArguments, RunArguments
from .console import note
from .models import load_config, load_model, load_tokenizer
from .preparation import Preparation
from .sources import load_rows, sample
from .tasks import Task, choose_task


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for: a model (local folder or Hub name), a strategy's configuration, and the arguments."""

    model: str
    pruning: PruningConfig
    data: DataArguments
    arguments: RunArguments


def run(request: RunRequest) -> PruningResult:
    """Prunes a model and writes it with its tokenizer; on failure nothing is written.

    Raises:
        PruningError: a request that cannot be carried out.
    """
    arguments = request.arguments
    check_output_folder(arguments.output_dir, arguments.overwrite_output_dir, request.model)
    config = load_config(request.model)
    task = choose_task(arguments.task, config)
    tokenizer = load_tokenizer(request.model, config, split_words=task.name == "token-classification")
    length = _length(request.data.max_seq_length, task, config, tokenizer)
    how = Preparation(tokenizer, config, length, request.data, arguments.seed)
    calibration, evaluation = _prepared(request.data, task, how)
    model, missing = load_model(request.model, task.model_class, arguments.dtype, arguments.device)
    _remark(request, config, missing)
    result = prune_model(
        model,
        request.pruning,
        calibration,
        data_collator=task.collator(tokenizer),
        eval_dataset=evaluation,
        compute_metrics=task.metrics_for(config),
    )
    card = {"dataset": request.data.dataset_name} if request.data.dataset_name else {}
    result.save_pretrained(arguments.output_dir, tokenizer=tokenizer, card=card)
    if arguments.push_to_hub:
        _upload(result, arguments, tokenizer, card)
    return result


def check_output_folder(folder: Path, overwrite: bool, model: str) -> None:
    """Refuses an output folder that would cost the user something, before any work is done.

    Raises:
        PruningError: it is a file, the model's own folder, holds files that may not be overwritten, or cannot be
            written to.
    """
    if folder.exists() and not folder.is_dir():
        raise PruningError(f"--output_dir {folder} is a file; name a folder.")
    if Path(model).is_dir() and Path(model).resolve() == folder.resolve():
        raise PruningError(f"--output_dir {folder} is the dense model's own folder; name another one.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise PruningError(f"--output_dir {folder} is not empty; name another folder or add --overwrite_output_dir.")
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise PruningError(f"--output_dir {folder}: no permission to write in {existing}; name another folder.")


def _upload(result: PruningResult, arguments: RunArguments, tokenizer: Any, card: dict[str, Any]) -> None:
    repository = str(arguments.push_to_hub)
    try:
        note(f"Uploaded: {result.push_to_hub(repository, tokenizer=tokenizer, card=card)}")
    except Exception as error:
        # Which HTTP library the Hub's client raises the errors of differs between its versions.
        raise PruningError(
            f"The pruned model is in {arguments.output_dir}, but it could not be uploaded to {repository}:"
            f" {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error


def _length(asked: int | None, task: Task, config: Any, tokenizer: Any) -> int:
    """Tokens per example: what was asked for, or what is usual, as far as the model has positions."""
    limit = min(getattr(config, "max_position_embeddings", None) or 10**9, tokenizer.model_max_length)
    if asked is not None and asked > limit:
        raise PruningError(f"--max_seq_length {asked} exceeds the model's {limit} positions.")
    return asked or min(task.max_length, limit)


def _prepared(data: DataArguments, task: Task, how: Preparation) -> tuple[Dataset, Dataset | None]:
    train, validation = load_rows(data)
    drawn = sample(train, data.num_samples, how.seed)
    note(f"Calibrating on {len(drawn):,} of {len(train):,} rows ({task.name}).")
    calibration = task.prepare(drawn, how)
    if validation is None:
        note("No validation rows: the report will have no metrics (--validation_file gives some).")
        return calibration, None
    return calibration, task.prepare(sample(validation, data.max_eval_samples, how.seed), how)


def _remark(request: RunRequest, config: Any, missing: list[str]) -> None:
    if missing:
        note(
            f"Warning: {request.model} has no weights for {', '.join(missing[:4])}{' …' if missing[4:] else ''}, which"
            " are now random. Fine-tune the model before pruning it, or its scores say nothing about the task.",
            style="yellow",
        )
    dtype = request.arguments.dtype
    stored = str(getattr(config, "dtype", None) or dtype).removeprefix("torch.")
    if dtype not in ("auto", stored):
        note(f"The checkpoint is stored in {stored}; the pruned one will be in {dtype} (--dtype changes that).")
