"""Prunes a small model with the calibration data shared out over the processes; run by torchrun."""

from __future__ import annotations

import copy
import sys

import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import save_file

from hf_prune import FisherPruningConfig, prune_model
from tests.distributed.ending import end_processes
from tests.distributed.small_bert import small_model

SETTINGS = {
    "weights": {"recovery": "weights"},
    "mask_tuning": {"recovery": "mask_tuning"},
    "after_refit": {"importance": "after_refit", "labels": "model"},
    "iterative": {"importance": "after_refit", "labels": "model", "iterative": True},
}


def main(folder: str, unreachable: bool) -> None:
    """Writes every process's pruned weights to `folder`; or asks for what only the measuring process can refuse."""
    accelerator = Accelerator(cpu=True)
    model = small_model()
    model.classifier.bias.data.normal_()
    generator = torch.Generator().manual_seed(1)
    rows = [
        {"input_ids": torch.randint(5, 64, (6 + index % 5,), generator=generator).tolist(), "label": index % 2}
        for index in range(44)
    ]
    if unreachable:
        settings = FisherPruningConfig(latency_ms=1e-9, batch_size=8)
        prune_model(model, settings, Dataset.from_list(rows), accelerator=accelerator)
    for name, settings in SETTINGS.items():
        config = FisherPruningConfig(flops=0.5, batch_size=8, refit_examples=None, **settings)
        pruned = prune_model(copy.deepcopy(model), config, Dataset.from_list(rows), accelerator=accelerator).model
        name = f"{folder}/{name}-{accelerator.num_processes}-{accelerator.process_index}.safetensors"
        save_file({key: value.contiguous() for key, value in pruned.state_dict().items()}, name)


if __name__ == "__main__":
    main(sys.argv[1], unreachable="unreachable" in sys.argv)
    end_processes()
