"""What the training scripts share of their command lines: they are read in stages, and the rows are named alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_prune import PruningConfig
from hf_prune.config import config_class_of, strategy_names


@dataclass
class StrategyArguments:
    strategy: str | None = field(
        default=None,
        metadata={
            "help": "How to prune while training; its settings are options, too (--strategy magnitude --help). 'hold'"
            " keeps the zeros of a pruned model. Default: plain training.",
            "choices": strategy_names(),
        },
    )


@dataclass
class SourceArguments:
    train_file: Path | None = field(
        default=None, metadata={"help": "Rows to train on: .tsv (as GLUE's), .csv, .json, .jsonl, .parquet or .txt."}
    )
    validation_file: Path | None = field(default=None, metadata={"help": "Rows to evaluate on."})
    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub, instead of files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_split: str = field(default="train", metadata={"help": "Its split to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Its split to evaluate on. Default: validation, or validation_matched."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Default: the names that GLUE uses, or text."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second text, for pairs."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens per example."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Examples to train on, drawn at random."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Examples to evaluate on, drawn at random."})

    def __post_init__(self) -> None:
        if bool(self.train_file) == bool(self.dataset_name):
            raise ValueError("Give either --train_file or --dataset_name.")


def parse_in_stages(argv: Sequence[str] | None, *script_classes: Any) -> tuple[tuple[Any, ...], PruningConfig | None]:
    """Reads the strategy's name, then the script's own options, then the settings of that strategy.

    One parser could not read them all, because configurations share names among themselves and with
    `TrainingArguments`. A setting that the script has an option for, too (`--seed`), gets the option's value.

    Returns:
        The script's dataclasses, and the configuration; None without a strategy.

    Raises:
        ValueError: an option that is of neither.
        PruningError: a setting that the configuration refuses.
    """
    first = HfArgumentParser(StrategyArguments, add_help=False, allow_abbrev=False)
    chosen, rest = _parse(first, argv)
    config_class = None if chosen.strategy is None else config_class_of(chosen.strategy)
    if {"-h", "--help"} & set(rest):
        for parser in [first] if config_class is None else [first, HfArgumentParser(config_class, add_help=False)]:
            parser.print_help()
    *parsed, rest = _parse(HfArgumentParser(script_classes, allow_abbrev=False), rest)
    if config_class is None:
        if rest:
            raise ValueError(f"There are no options {' '.join(rest)}. Settings of a strategy need --strategy.")
        return tuple(parsed), None
    config, rest = _parse(HfArgumentParser(config_class, allow_abbrev=False), [*rest, *_shared(parsed, config_class)])
    if rest:
        raise ValueError(f"Neither the script nor the strategy {chosen.strategy!r} has options {' '.join(rest)}.")
    return tuple(parsed), config


def _parse(parser: HfArgumentParser, argv: Sequence[str] | None) -> tuple[Any, ...]:
    arguments = None if argv is None else list(argv)
    return parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)


def _shared(parsed: Sequence[Any], config_class: type[PruningConfig]) -> list[str]:
    """The script's values for settings of the same name, as options."""
    names = {item.name for item in fields(config_class)}
    values = {name: value for part in parsed for name, value in vars(part).items() if name in names}
    return [text for name, value in values.items() if value is not None for text in (f"--{name}", str(value))]
