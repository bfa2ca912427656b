"""Models whose weights wait elsewhere until they are used, as transformers and Accelerate load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.utils import OffloadedWeightsLoader
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel

# All of a model on disk; transformers computes it on the CPU.
ON_DISK = {"": "disk"}


def on_disk(model: PreTrainedModel, folder: Path, shard: str = "20KB", **settings: Any) -> PreTrainedModel:
    """The same model, saved in shards and read from there whenever it computes."""
    model.save_pretrained(folder, max_shard_size=shard)
    return type(model).from_pretrained(folder, **{"device_map": ON_DISK, **settings})


def in_cpu_memory(model: PreTrainedModel) -> PreTrainedModel:
    """The same model as if it waited in the memory of the CPU for a GPU, which is the CPU again."""
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


class LoadedLayers:
    """Counts the layers of which weights that were read from disk are alive, wherever they are held.

    Attributes:
        most: the largest number so far.
        reads: how often a weight of a layer was read.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self.most = self.reads = 0
        self._alive: list[tuple[str, StorageWeakRef]] = []
        read = OffloadedWeightsLoader.__getitem__

        def watched(loader: Any, name: str) -> torch.Tensor:
            value = read(loader, name).clone()
            if ".layers." in name:
                layer = name.partition(".layers.")[2].partition(".")[0]
                self._alive.append((layer, StorageWeakRef(value.untyped_storage())))
                self.reads += 1
            self._alive = [pair for pair in self._alive if not pair[1].expired()]
            self.most = max(self.most, len({layer for layer, _ in self._alive}))
            return value

        monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", watched)
