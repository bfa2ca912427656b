"""Lets a pruned model learn from the dense one for an epoch or so, and writes it as the ordinary checkpoint it was.

    python examples/recover.py --model_name_or_path ./small --teacher_name_or_path ./my-model --train_file train.tsv \\
        --validation_file dev.tsv --text_column sentence --label_column label --output_dir recovered \\
        --num_train_epochs 1 --learning_rate 5e-4
    python examples/recover.py --model_name_or_path ./small --teacher_name_or_path someone/bert-sst2 \\
        --dataset_name nyu-mll/glue --dataset_config_name sst2 --output_dir recovered --lora_rank 0

Classifiers of texts and words, question answering, masked and causal language models. `--lora_rank 0` trains all
weights. The options that are not listed here are those of transformers' TrainingArguments.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from script_arguments import SourceArguments
from transformers import AutoConfig, AutoTokenizer, HfArgumentParser, TrainingArguments, set_seed

from hf_prune import recover
from hf_prune.commands.preparation import Preparation
from hf_prune.commands.sources import load_rows, sample
from hf_prune.commands.tasks import choose_task


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "The pruned model: a folder or a name on the Hub."})
    teacher_name_or_path: str = field(metadata={"help": "The dense model that it was made of."})
    task: str | None = field(default=None, metadata={"help": "Default: that of the model's head."})


@dataclass
class DataArguments(SourceArguments):
    label_column: str | None = field(default=None, metadata={"help": "Default: the names that GLUE uses."})


@dataclass
class RecoveryArguments:
    lora_rank: int = field(
        default=16, metadata={"help": "Of the adapters that are trained and merged; 0: all weights."}
    )
    temperature: float = field(default=2.0, metadata={"help": "Softens what teacher and student say."})
    teacher_weight: float = field(
        default=0.5, metadata={"help": "The teacher's share of the loss; with 1 no labels are needed."}
    )
    hidden_weight: float = field(default=0.0, metadata={"help": "Of the hidden states beside the teacher's logits."})
    dropout: bool = field(default=False, metadata={"help": "Train with the model's dropout."})

    def for_recover(self) -> dict[str, Any]:
        """Arguments of `recover`."""
        rank = self.lora_rank
        return {
            "lora": LoraConfig(r=rank, lora_alpha=2 * rank) if rank else False,
            "temperature": self.temperature,
            "teacher_weight": self.teacher_weight,
            "hidden_weight": self.hidden_weight,
            "dropout": self.dropout,
        }


def main(argv: Sequence[str] | None = None) -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, RecoveryArguments, TrainingArguments))
    model_args, data_args, recovery_args, training_args = parser.parse_args_into_dataclasses(argv)
    set_seed(training_args.seed)
    name = model_args.model_name_or_path
    config, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    task = choose_task(model_args.task, config)
    model = task.model_class.from_pretrained(name, dtype="float32")
    how = Preparation(tokenizer, config, data_args.max_seq_length, data_args, training_args.seed)

    def prepared(rows: Dataset | None, count: int | None, labelled: bool = True) -> Dataset | None:
        how_rows = replace(how, labelled=labelled)
        return None if rows is None else task.prepare(sample(rows, count, training_args.seed), how_rows)

    train_rows, eval_rows = load_rows(data_args)
    needed = recovery_args.teacher_weight < 1 or (train_rows is not None and task.has_labels(train_rows, data_args))
    recover(
        model,
        model_args.teacher_name_or_path,
        prepared(train_rows, data_args.max_train_samples, labelled=needed),
        eval_dataset=prepared(eval_rows, data_args.max_eval_samples),
        compute_metrics=task.metrics_for(config),
        data_collator=task.collator(tokenizer),
        training_args=training_args,
        **recovery_args.for_recover(),
    )
    output = Path(training_args.output_dir)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    metrics = getattr(model.config, "pruning", {}).get("metrics", {})
    (output / "all_results.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf8")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
