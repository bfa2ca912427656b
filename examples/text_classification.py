"""Fine-tunes a text classifier and prunes it on the way, with any strategy that works while a model is trained.

    python examples/text_classification.py --model_name_or_path google-bert/bert-base-uncased \\
        --dataset_name nyu-mll/glue --dataset_config_name sst2 --do_train --do_eval --output_dir sparse \\
        --strategy magnitude --sparsity 0.6
    python examples/text_classification.py --model_name_or_path ./my-model --train_file train.tsv \\
        --validation_file dev.tsv --text_column sentence --label_column label --do_train --do_eval --output_dir small \\
        --strategy magnitude --flops 0.5

A mask on weights that stay as they are, with frozen label words instead of a task head, and a teacher. Where a head is
trained, --learning_rate is the head's; --score_learning_rate is that of the mask's scores:

    python examples/text_classification.py --model_name_or_path ./my-model --train_file train.tsv --do_train \\
        --output_dir masked --strategy static_mask --sparsity 0.9 --label_words negative=terrible,positive=great \\
        --teacher_name_or_path ./my-classifier

The words are for the labels as the file has them; where it has numbers, for the names that ./my-model has for these.

A model that was pruned before, in pre-training for instance, keeps its zeros with `--strategy hold`. Without a strategy
this is plain fine-tuning. `--resume_from_checkpoint last` goes on with an interrupted run, and starts one if there is
none. `accelerate launch` works as for any script of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from script_arguments import SourceArguments, parse_in_stages
from training_run import make_callback, run_training
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_prune.commands.columns import text_columns
from hf_prune.commands.sources import load_rows, sample


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "The model to fine-tune: a folder or a name on the Hub."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Default: the one that lies with the model."})


@dataclass
class DataTrainingArguments(SourceArguments):
    label_column: str = field(default="label", metadata={"help": "Column of the classes, as names or numbers."})
    regression: bool = field(default=False, metadata={"help": "The labels are numbers to predict."})


@dataclass
class TeacherArguments:
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "A classifier that the pruned one learns from, too; as a rule the dense one."}
    )
    teacher_temperature: float = field(default=2.0, metadata={"help": "Softens what teacher and student say."})
    teacher_weight: float = field(default=0.5, metadata={"help": "The teacher's share of the loss."})

    def __post_init__(self) -> None:
        if self.teacher_name_or_path is None and (self.teacher_temperature, self.teacher_weight) != (2.0, 0.5):
            raise ValueError("--teacher_temperature and --teacher_weight need --teacher_name_or_path.")

    def for_callback(self) -> dict[str, Any]:
        """Arguments of `PruningCallback`."""
        return {
            "teacher": self.teacher_name_or_path,
            "temperature": self.teacher_temperature,
            "teacher_weight": self.teacher_weight,
        }


@dataclass(frozen=True)
class Labels:
    """The classes of a data set; none for a regression."""

    column: str
    names: tuple[str, ...]
    shown: tuple[str, ...] = ()  # what the model calls them, where the data has numbers

    @classmethod
    def of(cls, rows: Dataset, column: str) -> Labels:
        """Finds the names; numbers are sorted as numbers."""
        feature = rows.features[column]
        if isinstance(feature, ClassLabel):
            return cls(column, tuple(feature.names))
        names = {str(label) for label in rows[column]}
        return cls(column, tuple(sorted(names, key=lambda name: (int(name) if name.isdigit() else 0, name))))

    def named_by(self, config: PreTrainedConfig) -> Labels:
        """The same with the names that a fine-tuned model has for them, where the data has numbers only."""
        shown = tuple(config.id2label[number] for number in range(config.num_labels))
        numbered = {*self.names} <= {str(number) for number in range(len(shown))}
        if not self.names or not numbered or any(re.fullmatch(r"(LABEL_)?\d+", name) for name in shown):
            return self
        return replace(self, names=tuple(str(number) for number in range(len(shown))), shown=shown)

    def targets(self, rows: Dataset) -> list[Any]:
        """What the model is trained with: class ids or numbers."""
        if not self.names:
            return [float(label) for label in rows[self.column]]
        if isinstance(rows.features[self.column], ClassLabel):
            return list(rows[self.column])
        return [self.names.index(str(label)) for label in rows[self.column]]

    def settings(self) -> dict[str, Any]:
        """What the model's config has to know."""
        if not self.names:
            return {"num_labels": 1}
        names = self.shown or self.names
        return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def tokenized(
    rows: Dataset, labels: Labels, tokenizer: PreTrainedTokenizerBase, arguments: DataTrainingArguments
) -> Dataset:
    first, second = text_columns(rows, arguments)

    def encode(batch: dict[str, list[Any]]) -> Any:
        texts = [batch[column] for column in (first, second) if column is not None]
        return tokenizer(*texts, truncation=True, max_length=arguments.max_seq_length)

    encoded = rows.map(encode, batched=True, remove_columns=rows.column_names, desc="Tokenize")
    return encoded.add_column("labels", labels.targets(rows))


def metrics_for(labels: Labels) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(found: EvalPrediction) -> dict[str, float]:
        if labels.names:
            return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}
        return {"mse": float(np.square(found.predictions.squeeze(-1) - found.label_ids).mean())}

    return compute


def main(argv: Sequence[str] | None = None) -> None:
    (model_args, data_args, teacher_args, training_args), config = parse_in_stages(
        argv, ModelArguments, DataTrainingArguments, TeacherArguments, TrainingArguments
    )
    callback = make_callback(config, training_args, **teacher_args.for_callback())
    set_seed(training_args.seed)
    train_rows, eval_rows = load_rows(data_args)
    labels = (
        Labels(data_args.label_column, ()) if data_args.regression else Labels.of(train_rows, data_args.label_column)
    )
    name = model_args.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or name)
    labels = labels.named_by(AutoConfig.from_pretrained(name))
    model = AutoModelForSequenceClassification.from_pretrained(name, dtype="float32", **labels.settings())

    def prepared(rows: Dataset | None, count: int | None) -> Dataset | None:
        return None if rows is None else tokenized(sample(rows, count, seed=0), labels, tokenizer, data_args)

    trainer = Trainer(
        model,
        training_args,
        train_dataset=prepared(train_rows, data_args.max_train_samples),
        eval_dataset=prepared(eval_rows, data_args.max_eval_samples),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=metrics_for(labels),
        callbacks=None if callback is None else [callback],
    )
    run_training(trainer, callback, data_args.dataset_name)


if __name__ == "__main__":
    main()
