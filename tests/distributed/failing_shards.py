"""One process, not the first one, fails while the others go on: in calibration, or in training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from transformers import Trainer, TrainingArguments

from hf_prune import FisherPruningConfig, MovementPruningConfig, PruningCallback, prune_model
from tests.distributed.small_bert import small_model
from tests.distributed.train_shards import rows

MESSAGE = "the disk of process 1 is gone"


class Failing:
    """Data that fails on the second process when `number` items have been read."""

    def __init__(self, items: Any, number: int) -> None:
        self.items, self.left = items, number

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left < 0 and PartialState().process_index == 1:
            raise OSError(MESSAGE)
        return self.items[index]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def calibrate() -> None:
    """Fisher pruning, which looks at the first batch, at the lengths of all, and then goes through them."""
    accelerator = Accelerator(cpu=True)
    batches = [{"input_ids": torch.full((4, 6), 5 + index), "labels": torch.tensor([0, 1, 0, 1])} for index in range(8)]
    config = FisherPruningConfig(flops=0.5, refit_examples=None)
    prune_model(small_model(), config, Failing(batches, 14), accelerator=accelerator)


def train(folder: Path) -> None:
    """Movement pruning, whose scores are averaged at every step."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    config = MovementPruningConfig(sparsity=0.5)
    Trainer(small_model(), arguments, train_dataset=Failing(rows(), 10), callbacks=[PruningCallback(config)]).train()


if __name__ == "__main__":
    calibrate() if sys.argv[2] == "calibration" else train(Path(sys.argv[1]))
