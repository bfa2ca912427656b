"""Zeros in the weight files of a checkpoint, counted without building the model."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import PruningError
from ..report import MatrixSparsity
from ..surgery.bitmask import FLOAT_NAMES, PackedMatrix, unpacked

# Larger checkpoints take longer to read than anyone likes to wait for.
MOST_BYTES = 2**30


def stored_zeros(name: str) -> tuple[MatrixSparsity, ...] | None:
    """The matrices in a checkpoint that have zeros, by their names in the files.

    Args:
        name: local folder or Hub name.

    Returns:
        None where counting would take long: a checkpoint on the Hub, or one of more than a gigabyte; or where there
        are no safetensors files.

    Raises:
        PruningError: a file is damaged.
    """
    files = sorted(Path(name).glob("model*.safetensors")) if Path(name).is_dir() else []
    if not files or sum(file.stat().st_size for file in files) > MOST_BYTES:
        return None
    rows: list[MatrixSparsity] = []
    for file in files:
        try:
            with safe_open(file, "pt") as source:
                slices = {key: source.get_slice(key) for key in source.keys()}  # noqa: SIM118 - not a dictionary
                rows += [_counted(key, tensor) for key, tensor in unpacked(slices, str(file)).items()]
        except SafetensorError as error:
            raise PruningError(f"{file} is damaged: {error}.") from error
    return tuple(sorted((row for row in rows if row.removed), key=lambda row: _in_order(row.name)))


def _counted(name: str, tensor: Any) -> MatrixSparsity:
    """A tensor's zeros; none where it is no matrix of floating-point numbers."""
    if isinstance(tensor, PackedMatrix):
        weights, kept = prod(tensor.shape), tensor.values.get_shape()[0]
        return MatrixSparsity(name, weights, weights - kept)
    if len(tensor.get_shape()) < 2 or tensor.get_dtype() not in FLOAT_NAMES:
        return MatrixSparsity(name, 1, 0)
    return MatrixSparsity.of(name, tensor[...])


def _in_order(name: str) -> list[tuple[int, str]]:
    """Layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
