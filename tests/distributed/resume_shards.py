"""Prunes a small model, and may lose its last process in the middle."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file

from hf_prune import FisherPruningConfig, kept_steps, prune_model
from hf_prune.kept_steps import KeptStep
from tests.distributed.ending import end_processes
from tests.distributed.prune_shards import FISHER, calibration_rows
from tests.distributed.small_bert import small_model

# Enough to be in the middle of the repair.
WRITES = 10


def lose_process() -> None:
    """Ends this process after some writes."""
    write, left = KeptStep.write, [WRITES]

    def last(step: KeptStep, *values: Any) -> None:
        write(step, *values)
        left[0] -= 1
        if not left[0]:
            os._exit(9)

    KeptStep.write = last  # type: ignore[method-assign]


def main(folder: Path, lost: bool) -> None:
    """Goes on with what there is in `folder`, and writes every process's weights beside those of an undisturbed run."""
    kept_steps.PAUSE = kept_steps.PAUSE_PER_WRITING = 0.0
    accelerator = Accelerator(cpu=True)
    rank, count = accelerator.process_index, accelerator.num_processes
    model = small_model()
    config = FisherPruningConfig(**FISHER, importance="after_refit", labels="model")
    if lost and rank == count - 1:
        lose_process()

    def prune(name: str) -> None:
        data, run = calibration_rows(), folder / f"{name}-run"
        pruned = prune_model(copy.deepcopy(model), config, data, accelerator=accelerator, resume_dir=run).model
        tensors = {key: value.contiguous() for key, value in pruned.state_dict().items()}
        save_file(tensors, folder / f"{name}-{count}-{rank}.safetensors")

    prune("resumed")
    prune("whole")


if __name__ == "__main__":
    main(Path(sys.argv[1]), lost="lost" in sys.argv)
    end_processes()
