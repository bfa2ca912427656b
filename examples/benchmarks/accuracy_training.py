"""The recovery training of the accuracy table: how long a pruned model learns from the dense one, and how."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, TrainingArguments, set_seed

from hf_prune import recover


@dataclass(frozen=True)
class Training:
    """Settings of the recovery training; those that `recover` has are its defaults.

    Attributes:
        rows: train rows, among them those that were calibrated on.
        epochs: passes over them.
        batch: rows of a step.
        rate: the highest learning rate, after a tenth of the steps; it falls to zero.
        lora_rank: of the adapters; 0 trains all weights.
        temperature, teacher_weight, hidden_weight, dropout: see `recover`.
    """

    rows: int = 8000
    epochs: float = 1.0
    batch: int = 32
    rate: float = 5e-4
    lora_rank: int = 16
    temperature: float = 2.0
    teacher_weight: float = 0.5
    hidden_weight: float = 0.0
    dropout: bool = False


def train_pruned(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: Dataset,
    collator: Callable[[Any], Any],
    training: Training,
    seed: int,
) -> None:
    """Trains a pruned model in place.

    Args:
        model: the pruned model.
        teacher: the dense one.
        rows: tokenised, with labels.
        collator: makes batches of them.
        training: how.
        seed: of the order of the rows, of dropout and of the adapters.
    """
    set_seed(seed)  # adapters are made before the Trainer seeds anything
    rank = training.lora_rank
    # What a Trainer prints is not for the tables.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=training.epochs,
            per_device_train_batch_size=training.batch,
            learning_rate=training.rate,
            warmup_steps=0.1,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to=[],
            use_cpu=model.device.type == "cpu",
            seed=seed,
        )
        recover(
            model,
            teacher,
            rows,
            data_collator=collator,
            training_args=arguments,
            lora=LoraConfig(r=rank, lora_alpha=2 * rank) if rank else False,
            temperature=training.temperature,
            teacher_weight=training.teacher_weight,
            hidden_weight=training.hidden_weight,
            dropout=training.dropout,
        )
