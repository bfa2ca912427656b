"""What `hf-prune run` and `hf-prune sweep` work on: the model and the rows that a request names."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from datasets import Dataset
from transformers import PreTrainedModel

from ..config import PruningConfig, check_at_once
from ..errors import PruningError
from ..metric_floor import check_evaluates
from ..pruning_run import Evaluation
from .arguments import DataArguments, PruningArguments
from .console import note
from .models import load_config, load_model, load_tokenizer, model_class_of
from .preparation import Preparation
from .sources import load_rows, sample
from .tasks import Collator, Task, choose_task

ArgumentsT = TypeVar("ArgumentsT", bound=PruningArguments)


@dataclass(frozen=True)
class Request(Generic[ArgumentsT]):
    """What the user asked for: a model (local folder or Hub name), a strategy's configuration, and the arguments."""

    model: str
    pruning: PruningConfig
    data: DataArguments
    arguments: ArgumentsT

    def check(self) -> None:
        """Raises a PruningError where the strategy cannot do with what there is, or several processes would do it."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise PruningError(
                f"hf-prune works in one process, and this is one of {os.environ['WORLD_SIZE']}: leave the launcher out,"
                " or launch examples/prune_text_classification.py, which shares the calibration data out."
            )
        check_at_once(self.pruning)
        if self.pruning.needs_data:
            self.data.check_rows(labelled=self.pruning.needs_labels)


@dataclass(frozen=True)
class Rows:
    """What a request's rows come to.

    Attributes:
        model_class: of the model that they are for.
        tokenizer: as it lies with the model; None without one.
        calibration, evaluation: tokenised; None where there are none.
        collator: makes batches of them.
        compute_metrics: for transformers' evaluation loop.
    """

    model_class: Any
    tokenizer: Any = None
    calibration: Dataset | None = None
    evaluation: Dataset | None = None
    collator: Collator | None = None
    compute_metrics: Callable[[Any], dict[str, float]] | None = None

    def for_pruning(self) -> dict[str, Any]:
        """As arguments of `prune_model` and `sweep`."""
        return {
            "calibration_data": self.calibration,
            "data_collator": self.collator,
            "eval_dataset": self.evaluation,
            "compute_metrics": self.compute_metrics,
        }

    def for_saving(self, data: DataArguments) -> dict[str, Any]:
        """As arguments of `save_pretrained`."""
        return {"tokenizer": self.tokenizer, "card": {"dataset": data.dataset_name} if data.dataset_name else {}}


def load_inputs(request: Request[Any]) -> tuple[PreTrainedModel, Rows]:
    """The dense model and the rows of a request.

    Raises:
        PruningError: something cannot be had, or does not fit.
    """
    config = load_config(request.model)
    rows = _with_rows(request, config) if request.data.given else _without_rows(request, config)
    arguments = request.arguments
    places = {name: getattr(arguments, name) for name in ("device", "device_map", "offload_folder")}
    model, missing = load_model(request.model, rows.model_class, arguments.dtype, **places)
    _remark(request, config, missing)
    return model, rows


def _with_rows(request: Request[Any], config: Any) -> Rows:
    """Rows prepared for the model's task."""
    task = choose_task(request.arguments.task, config)
    tokenizer = load_tokenizer(request.model, config, split_words=task.name == "token-classification")
    length = _length(request.data.max_seq_length, task, config, tokenizer)
    how = Preparation(tokenizer, config, length, request.data, request.arguments.seed)
    return Rows(
        task.model_class,
        tokenizer,
        *_prepared(request, task, how),
        collator=task.collator(tokenizer),
        compute_metrics=task.metrics_for(config),
    )


def _without_rows(request: Request[Any], config: Any) -> Rows:
    """A model of any kind, with the tokenizer that lies beside it, if there is one."""
    asked = request.arguments.task
    model_class = choose_task(asked, config).model_class if asked is not None else model_class_of(config)
    try:
        tokenizer = load_tokenizer(request.model, config)
    except PruningError as error:
        note(f"No tokenizer is saved along: {error}")
        tokenizer = None
    return Rows(model_class, tokenizer)


def _length(asked: int | None, task: Task, config: Any, tokenizer: Any) -> int:
    """Tokens per example: what was asked for, or what is usual, as far as the model has positions."""
    limit = min(getattr(config, "max_position_embeddings", None) or 10**9, tokenizer.model_max_length)
    if asked is not None and asked > limit:
        raise PruningError(f"--max_seq_length {asked} exceeds the model's {limit} positions.")
    return asked or min(task.max_length, limit)


def _prepared(request: Request[Any], task: Task, how: Preparation) -> tuple[Dataset | None, Dataset | None]:
    data, pruning = request.data, request.pruning
    train, validation = load_rows(data, calibrate=pruning.needs_data or not pruning.prunes_weights)
    if validation is not None and not data.measured and not task.has_labels(validation, data):
        validation = None  # they came with the data set
    check_evaluates(pruning, Evaluation(validation), retrained=False)
    calibration = evaluation = None
    if train is not None:
        drawn = sample(train, data.num_samples, how.seed)
        note(f"Calibrating on {len(drawn):,} of {len(train):,} rows ({task.name}).")
        labelled = pruning.needs_labels or (pruning.takes_labels and task.has_labels(train, data))
        if pruning.takes_labels and not labelled:
            note(f"None of the columns {', '.join(train.column_names)} is known to be labels: see --label_column.")
        calibration = task.prepare(drawn, replace(how, labelled=labelled))
    elif data.train_file:
        note(f"The {pruning.strategy} strategy learns nothing from rows: {data.train_file} is not read.")
    if validation is None:
        note("No validation rows with labels: the report will have no metrics (--validation_file gives some).")
    else:
        evaluation = task.prepare(sample(validation, data.max_eval_samples, how.seed), how)
    return calibration, evaluation


def _remark(request: Request[Any], config: Any, missing: list[str]) -> None:
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
