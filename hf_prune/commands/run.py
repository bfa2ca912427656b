"""`hf-prune run`: a fine-tuned model and labelled rows in, a smaller checkpoint out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..api import prune_model
from ..config import PruningConfig, check_at_once
from ..errors import PruningError
from ..report.result import PruningResult, check_format
from .arguments import DataArguments, RunArguments
from .console import note
from .models import load_config, load_model, load_tokenizer, model_class_of
from .preparation import Preparation
from .sources import load_rows, sample
from .tasks import Collator, Task, choose_task


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for: a model (local folder or Hub name), a strategy's configuration, and the arguments."""

    model: str
    pruning: PruningConfig
    data: DataArguments
    arguments: RunArguments


@dataclass(frozen=True)
class _Inputs:
    """What a request's model and rows come to."""

    model_class: Any
    tokenizer: Any = None
    calibration: Dataset | None = None
    evaluation: Dataset | None = None
    collator: Collator | None = None
    compute_metrics: Callable[[Any], dict[str, float]] | None = None


def run(request: RunRequest) -> PruningResult:
    """Prunes a model and writes it with its tokenizer; on failure nothing is written.

    Raises:
        PruningError: a request that cannot be carried out.
    """
    arguments = request.arguments
    check_at_once(request.pruning)
    check_format(arguments.format)
    if request.pruning.needs_data:
        request.data.check_rows()
    check_output_folder(arguments.output_dir, arguments.overwrite_output_dir, request.model)
    config = load_config(request.model)
    inputs = _with_rows(request, config) if request.data.given else _without_rows(request, config)
    model, missing = load_model(request.model, inputs.model_class, arguments.dtype, arguments.device)
    _remark(request, config, missing)
    result = prune_model(
        model,
        request.pruning,
        inputs.calibration,
        data_collator=inputs.collator,
        eval_dataset=inputs.evaluation,
        compute_metrics=inputs.compute_metrics,
    )
    card = {"dataset": request.data.dataset_name} if request.data.dataset_name else {}
    saving = {"tokenizer": inputs.tokenizer, "card": card, "format": arguments.format}
    result.save_pretrained(arguments.output_dir, **saving)
    if arguments.push_to_hub:
        _upload(result, arguments, saving)
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


def _with_rows(request: RunRequest, config: Any) -> _Inputs:
    """Rows prepared for the model's task."""
    task = choose_task(request.arguments.task, config)
    tokenizer = load_tokenizer(request.model, config, split_words=task.name == "token-classification")
    length = _length(request.data.max_seq_length, task, config, tokenizer)
    how = Preparation(tokenizer, config, length, request.data, request.arguments.seed)
    return _Inputs(
        task.model_class,
        tokenizer,
        *_prepared(request, task, how),
        collator=task.collator(tokenizer),
        compute_metrics=task.metrics_for(config),
    )


def _without_rows(request: RunRequest, config: Any) -> _Inputs:
    """A model of any kind, with the tokenizer that lies beside it, if there is one."""
    asked = request.arguments.task
    model_class = choose_task(asked, config).model_class if asked is not None else model_class_of(config)
    try:
        tokenizer = load_tokenizer(request.model, config)
    except PruningError as error:
        note(f"No tokenizer is saved along: {error}")
        tokenizer = None
    return _Inputs(model_class, tokenizer)


def _upload(result: PruningResult, arguments: RunArguments, saving: dict[str, Any]) -> None:
    repository = str(arguments.push_to_hub)
    try:
        note(f"Uploaded: {result.push_to_hub(repository, **saving)}")
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


def _prepared(request: RunRequest, task: Task, how: Preparation) -> tuple[Dataset | None, Dataset | None]:
    data, pruning = request.data, request.pruning
    train, validation = load_rows(data, calibrate=pruning.needs_data or not pruning.prunes_weights)
    calibration = evaluation = None
    if train is not None:
        drawn = sample(train, data.num_samples, how.seed)
        note(f"Calibrating on {len(drawn):,} of {len(train):,} rows ({task.name}).")
        calibration = task.prepare(drawn, how)
    elif data.train_file:
        note(f"The {pruning.strategy} strategy learns nothing from rows: {data.train_file} is not read.")
    if validation is None:
        note("No validation rows: the report will have no metrics (--validation_file gives some).")
    else:
        evaluation = task.prepare(sample(validation, data.max_eval_samples, how.seed), how)
    return calibration, evaluation


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
