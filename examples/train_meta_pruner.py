"""Trains a meta-pruner, which then says of any encoder which heads a task can do without (Zhang et al. 2020).

    python examples/train_meta_pruner.py --model_name_or_path google-bert/bert-base-uncased --output_dir pruner \\
        --dataset_name nyu-mll/glue --single_configs sst2 cola --pair_configs mnli qqp stsb mrpc rte
    python examples/train_meta_pruner.py --model_name_or_path ./my-encoder --output_dir pruner \\
        --single_files sst2/train.tsv trec/train.tsv --pair_files stsb/train.tsv "mrpc/train.tsv:#1 String:#2 String" \\
        --episodes 1600 --episodes_per_update 4 --scored_examples 8 --optimizer adamw --learning_rate 0.002

No labels are read. `--resume` goes on with an interrupted run, and starts one if there is none. `accelerate launch`
shares the episodes out. Afterwards, before a model is fine-tuned:

    prune_model(model, SingleShotPruningConfig(pruner_name_or_path="pruner", input_type="single"), rows)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from script_end import end_processes
from transformers import AutoModel, AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase

from hf_prune import MetaTrainingArguments, train_meta_pruner
from hf_prune.commands.arguments import DataArguments
from hf_prune.commands.columns import text_columns
from hf_prune.commands.sources import load_rows, sample


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "The pre-trained encoder: a folder or a name on the Hub."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Default: the one that lies with the model."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU also where there is a GPU."})
    resume: bool = field(default=False, metadata={"help": "Go on with the run in the output folder, if there is one."})


@dataclass
class CorpusArguments:
    single_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Rows of single texts: .tsv (as GLUE's), .csv, .json, .jsonl, .parquet or .txt; the name of the"
            " text column may follow a colon. Default: the names that GLUE uses, or text."
        },
    )
    pair_files: list[str] = field(
        default_factory=list,
        metadata={"help": "Rows of pairs; the names of both columns may follow, with a colon before each."},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub, instead of files."})
    single_configs: list[str] = field(default_factory=list, metadata={"help": "Its configurations of single texts."})
    pair_configs: list[str] = field(default_factory=list, metadata={"help": "Its configurations of pairs."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens per example."})
    max_samples: int | None = field(default=None, metadata={"help": "Rows of each data set, drawn at random."})

    def __post_init__(self) -> None:
        named = bool(self.single_configs or self.pair_configs)
        if bool(self.dataset_name) != named or named == bool(self.single_files or self.pair_files):
            raise ValueError("Give either --single_files and --pair_files, or --dataset_name with its configurations.")

    def sources(self, kind: str) -> list[DataArguments]:
        """Where the data sets of one type of input are."""
        if self.dataset_name is not None:
            configs = self.single_configs if kind == "single" else self.pair_configs
            return [DataArguments(dataset_name=self.dataset_name, dataset_config_name=name) for name in configs]
        files = self.single_files if kind == "single" else self.pair_files
        return [_file_source(text) for text in files]


def _file_source(text: str) -> DataArguments:
    path, *columns = text.split(":")
    names = dict(zip(("text_column", "text_pair_column"), columns, strict=False))
    return DataArguments(train_file=Path(path), **names)


def tokenized(
    source: DataArguments, kind: str, tokenizer: PreTrainedTokenizerBase, arguments: CorpusArguments
) -> Dataset:
    rows = load_rows(source)[0]
    first, second = text_columns(rows, source)
    if kind == "pair" and second is None:
        raise ValueError(f"{source.train_file or source.dataset_config_name} has no second text: name both columns.")

    def encode(batch: dict[str, list[Any]]) -> Any:
        texts = [batch[first]] if kind == "single" else [batch[first], batch[second]]
        return tokenizer(*texts, truncation=True, max_length=arguments.max_seq_length)

    rows = sample(rows, arguments.max_samples, seed=0)
    return rows.map(encode, batched=True, remove_columns=rows.column_names, desc="Tokenize")


def main(argv: Sequence[str] | None = None) -> None:
    parser = HfArgumentParser((ModelArguments, CorpusArguments, MetaTrainingArguments))
    model_args, corpus_args, training_args = parser.parse_args_into_dataclasses(argv)
    accelerator = Accelerator(cpu=model_args.use_cpu)
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or model_args.model_name_or_path)
    model = AutoModel.from_pretrained(model_args.model_name_or_path, dtype=torch.float32).to(accelerator.device)
    with accelerator.main_process_first():
        datasets = {
            kind: [tokenized(source, kind, tokenizer, corpus_args) for source in corpus_args.sources(kind)]
            for kind in ("single", "pair")
        }
    train_meta_pruner(model, datasets, training_args, accelerator=accelerator, resume=model_args.resume)
    end_processes(accelerator)


if __name__ == "__main__":
    main()
