"""Prunes a fine-tuned text classifier, saves it and reads it back.

    python examples/prune_text_classification.py --model_name_or_path ./my-model --train_file train.tsv \\
        --validation_file dev.tsv --text_columns sentence --output_dir small --flops 0.5
    python examples/prune_text_classification.py --model_name_or_path someone/bert-sst2 --dataset_name nyu-mll/glue \\
        --dataset_config_name sst2 --text_columns sentence --output_dir small --flops 0.5

`accelerate launch` shares the calibration rows out over its processes; the first one writes.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from datasets import Dataset, DatasetDict, load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, HfArgumentParser

from hf_prune import PruningConfig, prune_model
from hf_prune.config import config_class_of, strategy_names


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "Fine-tuned classifier: a folder or a name on the Hub."})
    output_dir: str = field(metadata={"help": "Where the pruned model goes."})
    text_columns: list[str] = field(metadata={"help": "One column, or two for pairs."})
    label_column: str = field(default="label", metadata={"help": "Class names of the model, or numbers."})
    train_file: str | None = field(default=None, metadata={"help": "Calibration rows: tab-separated, with a header."})
    validation_file: str | None = field(default=None, metadata={"help": "Rows to measure accuracy on."})
    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub, instead of files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    examples: int = field(default=2048, metadata={"help": "Calibration examples."})
    resume_dir: str | None = field(
        default=None, metadata={"help": "Keeps what the run has found so far; started again, it goes on from there."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Work on the CPU also where there is a GPU."})


def parse_arguments() -> tuple[ScriptArguments, PruningConfig]:
    """Two stages, because every strategy has options of its own: first its name, then its configuration."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--strategy", default="fisher", choices=strategy_names())
    chosen, rest = first.parse_known_args()
    return HfArgumentParser((ScriptArguments, config_class_of(chosen.strategy))).parse_args_into_dataclasses(rest)


def load_rows(arguments: ScriptArguments) -> DatasetDict:
    if arguments.dataset_name:
        return load_dataset(arguments.dataset_name, arguments.dataset_config_name)
    files = {"train": arguments.train_file, "validation": arguments.validation_file}
    given = {split: file for split, file in files.items() if file}
    return load_dataset("csv", data_files=given, delimiter="\t", quoting=csv.QUOTE_NONE)


def main() -> None:
    arguments, config = parse_arguments()
    accelerator = Accelerator(cpu=arguments.use_cpu)
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model_name_or_path).to(accelerator.device)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)

    def label_id(label: Any) -> int:
        return model.config.label2id[label] if label in model.config.label2id else int(label)

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        labels = [label_id(label) for label in batch[arguments.label_column]]
        return {**tokenizer(*(batch[column] for column in arguments.text_columns), truncation=True), "labels": labels}

    def tokenized(split: Dataset) -> Dataset:
        return split.map(tokenize, batched=True, remove_columns=split.column_names)

    with accelerator.main_process_first():  # the others read what the first one leaves in the cache
        rows = load_rows(arguments)
        calibration = tokenized(rows["train"].shuffle(seed=0).take(arguments.examples))
        validation = tokenized(rows["validation"]) if "validation" in rows else None

    result = prune_model(
        model,
        config,
        calibration,
        data_collator=DataCollatorWithPadding(tokenizer),
        eval_dataset=validation,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
        accelerator=accelerator,
        resume_dir=arguments.resume_dir,
    )
    accelerator.print(result.report.to_markdown())
    result.save_pretrained(arguments.output_dir, tokenizer=tokenizer, is_main_process=accelerator.is_main_process)
    if accelerator.is_main_process:
        reloaded = AutoModelForSequenceClassification.from_pretrained(arguments.output_dir)
        print(f"{arguments.output_dir} holds {reloaded.num_parameters():,} parameters.")
    accelerator.wait_for_everyone()  # a group that ends while others are in it can wait forever
    accelerator.end_training()  # a process that exits with its group can abort


if __name__ == "__main__":
    main()
