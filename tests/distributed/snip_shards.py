"""Trains a small model with SNIP on all processes, each with its own share of every mini-batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_prune import PruningCallback, SnipPruningConfig
from tests.distributed.ending import end_processes
from tests.distributed.small_bert import small_model
from tests.distributed.train_shards import TOTAL_BATCH, rows, write

STEPS = 12
REDUCTIONS = ("example", "batch")


class Notes(TrainerCallback):
    """What the pruning's callback logs of each step."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning = pruning
        self.lines: list[dict[str, float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.lines.append(self.pruning.logs())


def train(folder: Path, reduction: str) -> tuple[PreTrainedModel, dict[str, str]]:
    """The trained model, and what was logged and recorded."""
    arguments = TrainingArguments(
        output_dir=str(folder / f"out-{reduction}"),
        max_steps=STEPS,
        learning_rate=1e-2,
        optim="sgd",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        average_tokens_across_devices=False,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=1000,
    )
    arguments.per_device_train_batch_size = TOTAL_BATCH // arguments.world_size
    model = small_model()
    pruning = PruningCallback(SnipPruningConfig(params=0.6, iterations=2, most=0.4, k=2, reduction=reduction))
    notes = Notes(pruning)
    Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows(), callbacks=[pruning, notes]).train()
    return model, {"lines": json.dumps(notes.lines), "curve": pruning.result.curve.to_json()}


def main(folder: Path) -> None:
    """Writes every process's weights, and what it has logged."""
    for reduction in REDUCTIONS:
        model, about = train(folder, reduction)
        write(model, folder, reduction, about)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_processes()
