"""Which layer a weight matrix belongs to and what it does there, read from its name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MatrixName:
    """A parameter's name, taken apart.

    Attributes:
        layer: the list of layers and the place in it (`bert.encoder.layer.0`); empty for a matrix outside of layers.
        kind: what the matrix is in its layer (`attention.self.query`), or its whole name outside of layers. Numbers
            inside a layer (of experts) are stars.
    """

    layer: str
    kind: str


def matrix_name(parameter: str) -> MatrixName:
    """Takes a parameter's name apart: the first number in it is that of the layer.

    Args:
        parameter: as in `named_parameters()`; an ending `.weight` is dropped.
    """
    parts = parameter.removesuffix(".weight").split(".")
    place = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts))
    if place >= len(parts) - 1:
        return MatrixName("", ".".join(parts))
    inside = ("*" if part.isdecimal() else part for part in parts[place + 1 :])
    return MatrixName(".".join(parts[: place + 1]), ".".join(inside))
