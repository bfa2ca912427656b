"""A training that kills its own process in the middle of a step; run as a script of its own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from hf_prune import MagnitudePruningConfig, MovementPruningConfig, PruningCallback
from tests.training.runs import bert, trainer_of

CONFIGS = {
    "magnitude": MagnitudePruningConfig(sparsity=0.7, frequency=2),
    "movement": MovementPruningConfig(sparsity=0.7, score_learning_rate=0.1),
    "units": MagnitudePruningConfig(flops=0.5, round_to=1, frequency=2),
}


class Killed(Trainer):
    """Loses its process between the forward and the backward pass of the fourth step's second batch."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss


def run(folder: Path, strategy: str, trainer_class: type[Trainer] = Trainer, **settings: Any) -> PreTrainedModel:
    model = bert(0.1)
    trainer = trainer_of(
        model,
        folder,
        PruningCallback(CONFIGS[strategy]),
        trainer_class=trainer_class,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train(**settings)
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), sys.argv[2], Killed)
