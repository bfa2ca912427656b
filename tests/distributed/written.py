"""What the processes of a launched script have written: one file of tensors for each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.distributed.launching import launch

Tensors = dict[str, torch.Tensor]

# Four processes on a machine with few cores take their time.
TWO_AND_SLOWLY_FOUR = [2, pytest.param(4, marks=pytest.mark.slow)]


def run_on(script: str, folder: Path, processes: int, *arguments: object) -> Path:
    """Runs a script of this folder, which gets a folder to write into, and fails if it does."""
    finished = launch(script, processes, folder, *arguments)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


def agreed(folder: Path, name: str, processes: int) -> Tensors:
    """What every process has written under a name, after a check that all wrote the same bits and metadata."""
    paths = [folder / f"{name}-{processes}-{rank}.safetensors" for rank in range(processes)]
    first, *others = map(load_file, paths)
    for other in others:
        assert first.keys() == other.keys()
        for key, value in first.items():
            assert torch.equal(value, other[key]), key
    assert all(metadata(path) == metadata(paths[0]) for path in paths)
    return first


def metadata(path: Path) -> dict[str, str]:
    """What a file says beside its tensors."""
    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata() or {}
        return found


def assert_close(found: Tensors, expected: Tensors) -> None:
    """The same shapes, the same zeros in matrices, and nearly the same numbers."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.shape == expected[name].shape, name
        assert value.dim() < 2 or torch.equal(value == 0, expected[name] == 0), name
        assert torch.allclose(value, expected[name], atol=1e-6), name
