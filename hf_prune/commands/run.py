"""`hf-prune run`: a fine-tuned model and labelled rows in, a smaller checkpoint out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..api import prune_model
from ..config import PruningConfig
from ..errors import PruningError
from ..report.result import PruningResult
from .columns import ColumnNames
from .console import note
from .models import load_config, load_model, load_tokenizer
from .preparation import Preparation
from .sources import DataSource, sample
from .tasks import Task, choose_task


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for.

    Attributes:
        model: local folder or Hub name.
        pruning: the strategy's configuration.
        source, columns: the data.
        output_dir: where the pruned model goes.
        overwrite: whether files in a folder that is not empty may be replaced.
        task: the task's name, None for that of the checkpoint's head.
        max_seq_length: tokens per example, None for the task's usual length.
        num_samples, max_eval_samples: rows to calibrate on and to evaluate on, None for all.
        dtype, device: see `hf_prune.commands.models.load_model`.
        seed: of the choice of rows.
        push_to_hub: a Hub repository to upload the result to.
    """

    model: str
    pruning: PruningConfig
    source: DataSource
    columns: ColumnNames
    output_dir: Path
    overwrite: bool = False
    task: str | None = None
    max_seq_length: int | None = None
    num_samples: int | None = 2048
    max_eval_samples: int | None = None
    dtype: str = "float32"
    device: str | None = None
    seed: int = 0
    push_to_hub: str | None = None


def run(request: RunRequest) -> PruningResult:
    """Prunes a model and writes it with its tokenizer; on failure nothing is written.

    Raises:
        PruningError: a request that cannot be carried out.
    """
    check_output_folder(request.output_dir, request.overwrite, request.model)
    request.source.check()
    config = load_config(request.model)
    task = choose_task(request.task, config)
    tokenizer = load_tokenizer(request.model, config, split_words=task.name == "token-classification")
    how = Preparation(tokenizer, config, _length(request, task, config, tokenizer), request.columns, request.seed)
    calibration, evaluation = _prepared(request, task, how)
    model, missing = load_model(request.model, task.model_class, request.dtype, request.device)
    _remark(request, config, missing)
    result = prune_model(
        model,
        request.pruning,
        calibration,
        data_collator=task.collator(tokenizer),
        eval_dataset=evaluation,
        compute_metrics=task.metrics_for(config),
    )
    result.save_pretrained(request.output_dir, tokenizer=tokenizer)
    if request.push_to_hub:
        note(f"Uploaded: {result.push_to_hub(request.push_to_hub, tokenizer=tokenizer)}")
    return result


def check_output_folder(folder: Path, overwrite: bool, model: str) -> None:
    """Refuses an output folder that would cost the user something, before any work is done.

    Raises:
        PruningError: it is a file, the model's own folder, or holds files that may not be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise PruningError(f"--output_dir {folder} is a file; name a folder.")
    if Path(model).is_dir() and Path(model).resolve() == folder.resolve():
        raise PruningError(f"--output_dir {folder} is the dense model's own folder; name another one.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise PruningError(f"--output_dir {folder} is not empty; name another folder or add --overwrite_output_dir.")


def _length(request: RunRequest, task: Task, config: Any, tokenizer: Any) -> int:
    """Tokens per example: what was asked for, as far as the model has positions."""
    limit = min(getattr(config, "max_position_embeddings", None) or 10**9, tokenizer.model_max_length)
    if request.max_seq_length is None:
        return min(task.max_length, limit)
    if not 1 <= request.max_seq_length <= limit:
        raise PruningError(f"--max_seq_length {request.max_seq_length} must lie between 1 and the model's {limit}.")
    return request.max_seq_length


def _prepared(request: RunRequest, task: Task, how: Preparation) -> tuple[Dataset, Dataset | None]:
    train, validation = request.source.load()
    drawn = sample(train, request.num_samples, request.seed)
    note(f"Calibrating on {len(drawn):,} of {len(train):,} rows ({task.name}).")
    calibration = task.prepare(drawn, how)
    if validation is None:
        note("No validation rows: the report will have no metrics (--validation_file gives some).")
        return calibration, None
    return calibration, task.prepare(sample(validation, request.max_eval_samples, request.seed), how)


def _remark(request: RunRequest, config: Any, missing: list[str]) -> None:
    if missing:
        note(
            f"Warning: {request.model} has no weights for {', '.join(missing[:4])}{' …' if missing[4:] else ''}, which"
            " are now random. Fine-tune the model before pruning it, or its scores say nothing about the task.",
            style="yellow",
        )
    stored = str(getattr(config, "dtype", None) or request.dtype).removeprefix("torch.")
    if request.dtype not in ("auto", stored):
        note(f"The checkpoint is stored in {stored}; the pruned one will be in {request.dtype} (--dtype changes that).")
