"""Short trainings with SNIP, and what is looked at on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback

from hf_prune import SnipPruningConfig
from hf_prune.strategies.levels import LEVELS_FOLDER
from hf_prune.strategies.snip import SnipPruner
from hf_prune.strategies.snip.iterations import Place
from tests.small_models import Batch
from tests.training.runs import BERT

STEPS = 12  # an iteration is gated in its first two steps, open in one, and measured in one


def config(**settings: Any) -> SnipPruningConfig:
    """Two iterations; the second one reaches the goal of the small BERT."""
    chosen: dict[str, Any] = {"iterations": 2, "most": 0.3}
    if not {"flops", "max_metric_drop"} & set(settings):
        chosen["params"] = 0.6
    return SnipPruningConfig(**chosen | settings)


def rows_of(batch: Batch) -> Dataset:
    return Dataset.from_dict({name: value.tolist() for name, value in batch.items()})


def level_folder(output: Path, number: int) -> Path:
    return output / LEVELS_FOLDER / f"level-{number:02d}"


def logits_of(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """In evaluation mode, whatever mode the model is in."""
    training = model.training
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(**batch).logits
    model.train(training)
    return logits


class Watch(TrainerCallback):
    """What the model says after every step, as it is evaluated then; it comes after the pruning's callback."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.logits: dict[int, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        self.logits[state.global_step] = logits_of(model, self.batch)


def run_steps(
    pruner: SnipPruner, model: PreTrainedModel, optimizer: torch.optim.Optimizer, steps: range, *, record: bool = True
) -> list[Place]:
    """A loop without a Trainer; returns where in the training each step was."""
    places = []
    for step in steps:
        places.append(pruner.iterations.place(step))
        model.train()(**BERT.batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if pruner.level_due and record:
            pruner.record_level()
    return places


def counts(pruner_or_level: Any) -> dict[str, int]:
    """How many units are on in each block of the small BERT, by the number of the layer and a letter."""
    return {
        key.split(".")[2] + ("h" if key.endswith("attention") else "f"): len(units)
        for key, units in pruner_or_level.kept.items()
    }
