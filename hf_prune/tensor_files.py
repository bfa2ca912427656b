"""Tensors in files, for what would not fit into memory."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_NAME = "tensor"


class TensorFiles(MutableMapping[str, torch.Tensor]):
    """Named tensors in a temporary folder, which is removed when nothing refers to the mapping any more.

    What is read comes back on the device that it came from, and takes memory for as long as it is held; what is written
    into it does not reach the file.

    Args:
        parent: where the folder is made; by default where Python makes temporary files.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hf_prune-", dir=parent, ignore_cleanup_errors=True)
        self._files: dict[str, tuple[Path, torch.device]] = {}
        self._numbers = itertools.count()

    def __getitem__(self, name: str) -> torch.Tensor:
        file, device = self._files[name]
        with safe_open(file, framework="pt", device=str(device)) as source:
            tensor: torch.Tensor = source.get_tensor(_NAME)
            return tensor

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        # Never over an old file: what was read from it is still mapped to it.
        file = Path(self._folder.name) / f"{next(self._numbers)}.safetensors"
        save_file({_NAME: tensor.detach().contiguous()}, file)
        if name in self._files:
            del self[name]
        self._files[name] = file, tensor.device

    def __delitem__(self, name: str) -> None:
        file, _ = self._files.pop(name)
        file.unlink()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __deepcopy__(self, memo: Any) -> TensorFiles:
        """The same files: a copy of a model reads what the model reads."""
        return self
