"""Prunes a small model with the calibration data shared out over the processes."""

from __future__ import annotations

import copy
import sys

import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import save_file

from hf_prune import FisherPruningConfig, MovementPruningConfig, PruningConfig, prune_model
from tests.distributed.ending import end_processes
from tests.distributed.small_bert import small_model

FISHER = {"flops": 0.5, "batch_size": 8, "refit_examples": None}
CONFIGS: dict[str, PruningConfig] = {
    "weights": FisherPruningConfig(**FISHER, recovery="weights"),
    "mask_tuning": FisherPruningConfig(**FISHER, recovery="mask_tuning"),
    "after_refit": FisherPruningConfig(**FISHER, importance="after_refit", labels="model"),
    "iterative": FisherPruningConfig(**FISHER, importance="after_refit", labels="model", iterative=True),
    "movement": MovementPruningConfig(sparsity=0.5, batch_size=8),
    "soft_movement": MovementPruningConfig(threshold=0.52, batch_size=8),
}


def calibration_rows() -> Dataset:
    """Rows that make six batches of eight, the last one of four: of two processes the second has fewer examples, and
    of four the third and the fourth have one batch instead of two.
    """
    generator = torch.Generator().manual_seed(1)
    rows = [
        {"input_ids": torch.randint(5, 64, (6 + index % 5,), generator=generator).tolist(), "label": index % 2}
        for index in range(44)
    ]
    return Dataset.from_list(rows)


def main(folder: str, unreachable: bool) -> None:
    """Writes every process's pruned weights to `folder`; or asks for what only the measuring process can refuse."""
    accelerator = Accelerator(cpu=True)
    model = small_model()
    model.classifier.bias.data.normal_()
    if unreachable:
        config = FisherPruningConfig(latency_ms=1e-9, batch_size=8)
        prune_model(model, config, calibration_rows(), accelerator=accelerator)
    for name, config in CONFIGS.items():
        pruned = prune_model(copy.deepcopy(model), config, calibration_rows(), accelerator=accelerator).model
        name = f"{folder}/{name}-{accelerator.num_processes}-{accelerator.process_index}.safetensors"
        save_file({key: value.contiguous() for key, value in pruned.state_dict().items()}, name)


if __name__ == "__main__":
    main(sys.argv[1], unreachable="unreachable" in sys.argv)
    end_processes()
