"""The bitmask format: a matrix with many zeros as its non-zero values and one bit per weight.

A matrix `name` becomes three tensors of a safetensors file, all under names that start with its own:

- `name`: its non-zero values in row-major order, 1-D, in the matrix's dtype;
- `name_bitmask`: one bit per weight, uint8 `[⌈n / 8⌉]`, row-major, the first weight in the highest bit of the first
  byte (`numpy.packbits`), set where the weight is not zero; padding bits are zero;
- `name_bitmask_shape`: the matrix's shape, int64.

This is a format of this library's own. It holds what compressed-tensors' sparse-bitmask layout held, which that library
has given up (0.20 neither writes nor reads it). A fp32 matrix of which 90 % is zero takes 4.2 bits per weight. Whoever
does not know the format finds 1-D values where a matrix should be, which every loader refuses.

Zeros have no sign here: a negative zero comes back as a positive one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from ..errors import PruningError
from ..gates.bits import pack_mask, unpack_mask

BITS = "_bitmask"
SHAPE = "_bitmask_shape"
FLOAT_NAMES = ("F64", "F32", "F16", "BF16")  # what safetensors calls floating-point numbers

# A matrix is packed if that takes at most this share of its dense space: less is not worth needing hf_prune for.
WORTHWHILE = 0.9
# What two more tensors add to a file's header, about.
_HEADER_BYTES = 256
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_MOST_DIMENSIONS = 8


def packed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors that stand for a weight in a file.

    Args:
        name: of the weight.
        weight: any tensor; 1-D ones, integers, and matrices with too few zeros stay as they are.

    Returns:
        The weight itself under its name, or the three tensors of the format, contiguous and on the CPU.
    """
    if weight.dim() < 2 or weight.dtype not in _FLOATS:
        return {name: weight}
    flat = weight.detach().cpu().reshape(-1)
    mask = flat != 0
    shape = torch.tensor(weight.shape, dtype=torch.int64)
    taken = int(mask.sum()) * weight.element_size() + -(-weight.numel() // 8) + shape.nbytes + _HEADER_BYTES
    if taken > WORTHWHILE * weight.nbytes:
        return {name: weight}
    return {name: flat[mask], name + BITS: pack_mask(mask), name + SHAPE: shape}


def is_packed(names: Iterable[str]) -> bool:
    """Whether any of a file's tensors is in the bitmask format."""
    return any(name.endswith(SHAPE) for name in names)


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix in the bitmask format that is read when it is indexed, as safetensors' slices are.

    It has the three methods of safetensors' slices, so that whatever takes slices takes it, too. What is unpacked is
    at most eight values per byte of the mask, whatever the shape says.

    Attributes:
        name: of the matrix.
        file: where it is, for errors.
        values: safetensors' slice of the non-zero values.
        bits: safetensors' slice of the mask.
        shape: of the matrix.
    """

    name: str
    file: str
    values: Any
    bits: Any
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensors: Mapping[str, Any], file: str) -> PackedMatrix:
        """Checks what a file's header says about a matrix; of the data only the shape is read.

        Args:
            name: of the matrix.
            tensors: the file's slices by name.
            file: for errors.

        Raises:
            PruningError: a part is missing or has the wrong type, or the lengths do not fit the shape.
        """
        missing = [part for part in (name, name + BITS, name + SHAPE) if part not in tensors]
        if missing:
            raise _damaged(name, file, f"it has no tensor {missing[0]}")
        values, bits, shape = tensors[name], tensors[name + BITS], _read_shape(name, tensors[name + SHAPE], file)
        count = prod(shape)
        if values.get_dtype() not in FLOAT_NAMES or len(values.get_shape()) != 1:
            raise _damaged(name, file, f"its values are {values.get_dtype()} of shape {values.get_shape()}")
        if bits.get_dtype() != "U8" or bits.get_shape() != [-(-count // 8)]:
            raise _damaged(
                name,
                file,
                f"its bitmask is {bits.get_dtype()} of shape {bits.get_shape()}, and {shape} weights take"
                f" U8 of shape [{-(-count // 8)}]",
            )
        return cls(name, file, values, bits, shape)

    def get_shape(self) -> list[int]:
        """The dense matrix's shape."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """The matrix's dtype, as safetensors calls it."""
        return str(self.values.get_dtype())

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Unpacks the matrix, and takes a part of it.

        Raises:
            PruningError: there are more or fewer values than set bits, or padding bits are set.
        """
        mask = unpack_mask(self.bits[...], (prod(self.shape),), f"{self.name} in {self.file}")
        values, count = self.values[...], int(mask.sum())
        if count != len(values):
            raise _damaged(self.name, self.file, f"its bitmask has {count} bits set, for {len(values)} values")
        dense = torch.zeros(mask.shape, dtype=values.dtype)
        return dense.masked_scatter_(mask, values).reshape(self.shape)[index]


def unpacked(tensors: Mapping[str, Any], file: str) -> dict[str, Any]:
    """A file's slices with one `PackedMatrix` in place of the three parts of each packed matrix.

    Args:
        tensors: the file's slices by name.
        file: for errors.

    Raises:
        PruningError: a packed matrix is damaged.
    """
    names = {name.removesuffix(SHAPE) for name in tensors if name.endswith(SHAPE)}
    parts = {name + suffix for name in names for suffix in ("", BITS, SHAPE)}
    plain = {name: tensor for name, tensor in tensors.items() if name not in parts}
    return plain | {name: PackedMatrix.of(name, tensors, file) for name in sorted(names)}


def _read_shape(name: str, stored: Any, file: str) -> tuple[int, ...]:
    kind, length = stored.get_dtype(), stored.get_shape()
    if kind != "I64" or len(length) != 1 or not 2 <= length[0] <= _MOST_DIMENSIONS:
        raise _damaged(name, file, f"its shape is {kind} of shape {length}, not 2 … {_MOST_DIMENSIONS} I64 numbers")
    shape = tuple(stored[...].tolist())
    if min(shape) < 0:
        raise _damaged(name, file, f"its shape is {shape}")
    return shape


def _damaged(name: str, file: str, problem: str) -> PruningError:
    return PruningError(f"{name} in {file} is in the bitmask format, but {problem}. Fetch or save the checkpoint anew.")
