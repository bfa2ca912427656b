"""Trainings whose cost is compared: by a plain Trainer, and with `PruningCallback`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_prune import (
    MagnitudePruningConfig,
    MovementPruningConfig,
    PruningCallback,
    PruningConfig,
    StaticMaskConfig,
    StaticPruningConfig,
)

BASE_MODEL = "minilm-base"
PERIOD = 10
PLAIN = "plain Trainer"
STATIC, ADAPTER = "static mask", "static mask, adapter"


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        config: makes the strategy's configuration; None for no callback.
        target: the largest ratio to the plain step.
        update_every: steps between two choices of masks.
        adapter: whether the strategy's mask is a PEFT adapter.
    """

    config: Callable[[], PruningConfig | StaticMaskConfig] | None = None
    target: float | None = None
    update_every: int | None = None
    adapter: bool = False


VARIANTS = {
    PLAIN: Variant(),
    "magnitude": Variant(lambda: MagnitudePruningConfig(sparsity=0.6, end=0.5, frequency=PERIOD), 1.05, PERIOD),
    "movement": Variant(lambda: MovementPruningConfig(sparsity=0.6, end=0.5), 1.5, 1),
    STATIC: Variant(lambda: StaticPruningConfig(sparsity=0.9, end=0.5), 1.5, 1),
    ADAPTER: Variant(lambda: StaticMaskConfig(sparsity=0.9, end=0.5, task_type="SEQ_CLS"), 1.5, 1, adapter=True),
}


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    """`--batch-size` and `--length`."""
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--length", type=int, default=128, help="tokens per row; default: %(default)s")


def make_trainer(
    variant: Variant, arguments: argparse.Namespace, folder: str, steps: int, callbacks: Sequence[TrainerCallback] = ()
) -> Trainer:
    """A Trainer of the base model with a new classifier, on random rows.

    Args:
        variant: how to train.
        arguments: of the script.
        folder: of the Trainer, which writes nothing.
        steps: of the optimizer.
        callbacks: besides that of the variant, which comes last.
    """
    model = AutoModelForSequenceClassification.from_pretrained(arguments.models / BASE_MODEL, dtype="float32")
    rows = random_rows(model.config.vocab_size, arguments.batch_size * steps, arguments.length)
    pruning = []
    if variant.config is not None:
        config = variant.config()
        if variant.adapter:
            model = get_peft_model(model, config)
        pruning = [PruningCallback(None if variant.adapter else config)]
    settings = TrainingArguments(
        folder,
        use_cpu=arguments.device.type == "cpu",
        per_device_train_batch_size=arguments.batch_size,
        max_steps=steps,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model, settings, train_dataset=rows, callbacks=[*callbacks, *pruning])
    trainer.remove_callback(PrinterCallback)
    return trainer


def random_rows(vocabulary: int, examples: int, length: int) -> Dataset:
    """Token ids and labels; every row is as long as the others."""
    generator = torch.Generator().manual_seed(0)
    first = min(1000, vocabulary // 2)  # after the special tokens
    ids = torch.randint(first, vocabulary, (examples, length), generator=generator)
    labels = torch.randint(2, (examples,), generator=generator)
    return Dataset.from_dict(
        {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist(), "labels": labels.tolist()}
    )
