"""Pre-trains a masked language model and prunes it on the way, so that what is fine-tuned later is pruned already.

    python examples/masked_lm.py --model_name_or_path google-bert/bert-base-uncased \\
        --dataset_name Salesforce/wikitext --dataset_config_name wikitext-2-raw-v1 --do_train --do_eval \\
        --output_dir sparse-bert --strategy magnitude --sparsity 0.6
    python examples/text_classification.py --model_name_or_path sparse-bert --train_file train.tsv \\
        --validation_file dev.tsv --do_train --do_eval --output_dir sparse-classifier --strategy hold

Without a model to start from a new one is made, with the tokenizer of another model or one trained on the texts:

    python examples/masked_lm.py --tokenizer_name ./some-bert --vocabulary_size 8000 \\
        --config_overrides hidden_size=256,num_hidden_layers=4,num_attention_heads=4,intermediate_size=1024 \\
        --train_file train.txt --do_train --output_dir small-bert

`--spectral_norm_bound 5` keeps the largest singular values of the layers' matrices below that (Lin et al. 2020).
`--resume_from_checkpoint last` goes on with an interrupted run, and starts one if there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset
from script_arguments import SourceArguments, parse_in_stages
from spectral_training import SpectralNormCallback
from training_run import make_callback, run_training
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hf_prune.commands.columns import text_columns, texts_of
from hf_prune.commands.sources import load_rows, sample

EVALUATION_SEED = 0


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "A model to go on with."})
    model_type: str = field(default="bert", metadata={"help": "The type of a new model."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Sizes of a new model: hidden_size=256,num_hidden_layers=4."}
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "Default: the one that lies with the model."})
    vocabulary_size: int | None = field(
        default=None, metadata={"help": "Train a tokenizer of this size and of the named one's kind on the texts."}
    )
    spectral_norm_bound: float | None = field(
        default=None,
        metadata={"help": "Keep the largest singular values of the layers' matrices at most this large (SNIP: 5)."},
    )

    def __post_init__(self) -> None:
        if not self.model_name_or_path and not self.tokenizer_name:
            raise ValueError("A new model needs --tokenizer_name; or give --model_name_or_path.")
        if self.model_name_or_path and (self.config_overrides or self.vocabulary_size):
            raise ValueError("--config_overrides and --vocabulary_size are for a new model; leave one of the two out.")


@dataclass
class DataTrainingArguments(SourceArguments):
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens that are to be guessed."})


class MaskingCollator:
    """Masks training rows afresh every time, and leaves rows alone that are masked already."""

    def __init__(self, masking: Callable[[Any], Any]) -> None:
        self._masking = masking

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return default_data_collator(rows) if "labels" in rows[0] else self._masking(rows)


def make_tokenizer(arguments: ModelArguments, texts: Sequence[str], output: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that lies somewhere, or a new one, which is kept: training it again would number words anew."""
    if arguments.vocabulary_size is None:
        return AutoTokenizer.from_pretrained(arguments.tokenizer_name or arguments.model_name_or_path)
    folder = output / "new_tokenizer"
    if not folder.is_dir():
        kind = AutoTokenizer.from_pretrained(arguments.tokenizer_name)
        kind.train_new_from_iterator(texts, arguments.vocabulary_size).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def make_model(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if arguments.model_name_or_path:
        return AutoModelForMaskedLM.from_pretrained(arguments.model_name_or_path, dtype="float32")
    config = AutoConfig.for_model(arguments.model_type, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    if arguments.config_overrides:
        config.update_from_string(arguments.config_overrides)
    return AutoModelForMaskedLM.from_config(config)


def blocks_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """The texts one after the other, cut into blocks of `length` tokens; what is left at the end is dropped."""

    def cut(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        stream = list(chain.from_iterable(tokenizer(batch["text"]).input_ids))
        return {"input_ids": [stream[end - length : end] for end in range(length, len(stream) + 1, length)]}

    rows = Dataset.from_dict({"text": list(texts)})
    blocks = rows.map(cut, batched=True, remove_columns=["text"], desc="Tokenize")
    if not len(blocks):
        raise ValueError(f"{len(texts)} texts do not fill one block of --max_seq_length {length} tokens.")
    return blocks


def masked_once(rows: Dataset, tokenizer: PreTrainedTokenizerBase, share: float) -> Dataset:
    """Rows masked by a generator of their own, so that every model is asked for the same tokens."""
    masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share, seed=EVALUATION_SEED)
    return Dataset.from_dict({name: values.tolist() for name, values in masking(list(rows)).items()})


def main(argv: Sequence[str] | None = None) -> None:
    (model_args, data_args, training_args), config = parse_in_stages(
        argv, ModelArguments, DataTrainingArguments, TrainingArguments
    )
    callback = make_callback(config, training_args)
    bound = model_args.spectral_norm_bound
    if bound is not None and not training_args.do_train:
        raise ValueError("--spectral_norm_bound is for training: add --do_train.")
    normalisation = None if bound is None else SpectralNormCallback(bound)
    set_seed(training_args.seed)
    train_rows, eval_rows = load_rows(data_args)
    texts = texts_of(train_rows, text_columns(train_rows, data_args)[0])
    with training_args.main_process_first(desc="tokenizer"):
        tokenizer = make_tokenizer(model_args, texts, Path(training_args.output_dir))
    train_blocks = sample(blocks_of(texts, tokenizer, data_args.max_seq_length), data_args.max_train_samples, seed=0)
    eval_blocks = None
    if eval_rows is not None:
        texts = texts_of(eval_rows, text_columns(eval_rows, data_args)[0])
        eval_blocks = sample(blocks_of(texts, tokenizer, data_args.max_seq_length), data_args.max_eval_samples, seed=0)
        eval_blocks = masked_once(eval_blocks, tokenizer, data_args.mlm_probability)
    masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=data_args.mlm_probability)
    trainer = Trainer(
        make_model(model_args, tokenizer),
        training_args,
        train_dataset=train_blocks,
        eval_dataset=eval_blocks,
        data_collator=MaskingCollator(masking),
        processing_class=tokenizer,
        callbacks=[item for item in (normalisation, callback) if item is not None],
    )
    run_training(trainer, callback, data_args.dataset_name)


if __name__ == "__main__":
    main()
