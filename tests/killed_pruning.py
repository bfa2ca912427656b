"""A pruning that ends its own process in the middle, as if it was killed; run as a script of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from hf_prune import FisherPruningConfig, PruningResult, kept_steps, prune_model
from hf_prune.recovery import reconstruction
from hf_prune.scores import gradients
from tests.small_models import case

ITEM = case("bert", "classification")
CONFIG = FisherPruningConfig(flops=0.5, round_to=1)
# Where the process ends: a function and the number of its call. Gates are evaluated twice for the first batch.
ENDS = {"gradients": (gradients, "_gated_loss", 4), "repair": (reconstruction, "block_inputs", 20)}


def prune(folder: Path) -> PruningResult:
    return prune_model(ITEM.model(), CONFIG, [ITEM.batch(seed) for seed in range(4)], resume_dir=folder)


def end_at(place: str) -> None:
    """Plants the end of this process."""
    module, name, calls = ENDS[place]
    works, left = getattr(module, name), [calls]

    def killed(*values: Any, **options: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os._exit(9)
        return works(*values, **options)

    setattr(module, name, killed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    kept_steps.PAUSE = kept_steps.PAUSE_PER_WRITING = 0.0
    end_at(sys.argv[2])
    prune(Path(sys.argv[1]))
