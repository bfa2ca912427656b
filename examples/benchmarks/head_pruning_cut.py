"""Removes heads from a model, by any strategy that needs no training, and saves it: a step of `head_pruning.py`.

    python examples/benchmarks/head_pruning_cut.py --model_name_or_path ./my-model --train_file train.tsv \\
        --output_dir cut --strategy random --heads 0.5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from script_arguments import parse_in_stages
from text_classification import DataTrainingArguments, Labels, tokenized
from transformers import AutoTokenizer, DataCollatorWithPadding

from hf_prune import prune_model
from hf_prune.commands.models import load_config, load_model, model_class_of
from hf_prune.commands.sources import load_rows, sample


@dataclass
class CutArguments:
    model_name_or_path: str = field(metadata={"help": "An encoder, or a classifier where the strategy needs a loss."})
    output_dir: str = field(metadata={"help": "Where the pruned model goes."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU also where there is a GPU."})


def main(argv: Sequence[str] | None = None) -> None:
    """Prunes as the options say."""
    (arguments, data_args), config = parse_in_stages(argv, CutArguments, DataTrainingArguments)
    if config is None:
        raise ValueError("--strategy has to be given.")
    name = arguments.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(name)
    model, _ = load_model(name, model_class_of(load_config(name)), device="cpu" if arguments.use_cpu else None)
    rows = load_rows(data_args)[0]
    chosen = sample(rows, data_args.max_train_samples, seed=0)
    data = tokenized(chosen, Labels.of(rows, data_args.label_column), tokenizer, data_args)
    result = prune_model(model, config, data, data_collator=DataCollatorWithPadding(tokenizer))
    result.save_pretrained(arguments.output_dir, tokenizer=tokenizer)


if __name__ == "__main__":
    main()
