"""The tasks that `hf-prune run` prepares data for, and which of them a checkpoint was trained for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers
from datasets import Dataset
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto import modeling_auto

from ..errors import PruningError
from . import metrics, preparation
from .arguments import DataArguments
from .columns import LABEL_COLUMNS, TAG_COLUMNS

Collator = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as pipelines call it.
        auto_class: the Auto class whose models have its head.
        table: transformers' name for the table behind it, of model type → class name.
        prepare: rows → inputs, and labels where they are asked for.
        compute_metrics: for transformers' evaluation loop; None where the loss is all.
        labels: usual names of the column that the labels are in; none where they are the texts themselves.
        max_length: tokens per example unless the user says otherwise.
        per_token: whether labels are padded like tokens.
    """

    name: str
    auto_class: str
    table: str
    prepare: Callable[[Dataset, preparation.Preparation], Dataset]
    compute_metrics: Callable[[Any], dict[str, float]] | None
    labels: tuple[str, ...] = ()
    max_length: int = 128
    per_token: bool = False

    @property
    def model_class(self) -> Any:
        """The Auto class itself."""
        return getattr(transformers, self.auto_class)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads a list of rows to the longest of them."""
        kind = DataCollatorForTokenClassification if self.per_token else DataCollatorWithPadding
        return kind(tokenizer)

    def metrics_for(self, config: PreTrainedConfig) -> Callable[[Any], dict[str, float]] | None:
        """The metrics that suit a model: a text classifier with a single output is a regression."""
        if self.compute_metrics is metrics.classification_accuracy and config.num_labels == 1:
            return metrics.regression_correlation
        return self.compute_metrics

    def has_labels(self, rows: Dataset, data: DataArguments) -> bool:
        """Whether there are labels in the rows, as far as the names of their columns tell."""
        return not self.labels or data.label_column is not None or bool({*self.labels} & {*rows.column_names})

    def architectures(self, model_type: str) -> tuple[str, ...]:
        """Names of the model classes of a family that have this task's head."""
        names = getattr(modeling_auto, f"MODEL_FOR_{self.table}_MAPPING_NAMES").get(model_type, ())
        return (names,) if isinstance(names, str) else tuple(names)


TASKS = (
    Task(
        "text-classification",
        "AutoModelForSequenceClassification",
        "SEQUENCE_CLASSIFICATION",
        preparation.text_classification,
        metrics.classification_accuracy,
        LABEL_COLUMNS,
    ),
    Task(
        "token-classification",
        "AutoModelForTokenClassification",
        "TOKEN_CLASSIFICATION",
        preparation.token_classification,
        metrics.token_accuracy,
        TAG_COLUMNS,
        per_token=True,
    ),
    Task(
        "question-answering",
        "AutoModelForQuestionAnswering",
        "QUESTION_ANSWERING",
        preparation.question_answering,
        metrics.span_accuracy,
        ("answers",),
        max_length=384,
    ),
    Task("fill-mask", "AutoModelForMaskedLM", "MASKED_LM", preparation.masked_language_model, None, per_token=True),
    Task(
        "text-generation", "AutoModelForCausalLM", "CAUSAL_LM", preparation.causal_language_model, None, per_token=True
    ),
)


def choose_task(name: str | None, config: PreTrainedConfig) -> Task:
    """The task of a given name, or the one that a checkpoint's head is for.

    Raises:
        PruningError: an unknown name, or a checkpoint with no head or one that no task here has.
    """
    known = ", ".join(task.name for task in TASKS)
    if name is not None:
        for task in TASKS:
            if task.name == name:
                return task
        raise PruningError(f"Unknown task {name!r}; --task takes {known}.")
    architectures = config.architectures or []
    for task in TASKS:
        if set(architectures) & set(task.architectures(config.model_type)):
            return task
    raise PruningError(
        f"The checkpoint's architecture ({', '.join(architectures) or 'not stated'}) is that of no task this command"
        f" prepares data for ({known}). Name one with --task, or tokenise the data yourself and call"
        " hf_prune.prune_model in Python."
    )
