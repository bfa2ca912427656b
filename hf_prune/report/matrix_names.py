"""Which layer a weight matrix belongs to and what it does there, read from its name; and matrices that must agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import PruningError


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


def check_alike(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], what: str) -> None:
    """Refuses two sets of matrices that cannot be compared entry by entry.

    Args:
        one, other: parameter name → tensor.
        what: what they are, in the plural.

    Raises:
        PruningError: there are none, or names or shapes differ.
    """
    if not one and not other:
        raise PruningError(f"There are no {what} to compare: both sides are empty.")
    if set(one) != set(other):
        sides = [sorted(set(one) - set(other)), sorted(set(other) - set(one))]
        texts = [f"{len(names)} only in the {side}{_some(names)}" for side, names in zip(_SIDES, sides, strict=True)]
        raise PruningError(
            f"The {what} must have the same names on both sides: {' and '.join(texts)}. Compare the parameters that"
            " both models have, under the same names."
        )
    for name, tensor in one.items():
        if tensor.shape != other[name].shape:
            raise PruningError(
                f"The {what} named {name!r} differ in shape: {tuple(tensor.shape)} and {tuple(other[name].shape)}."
                " Only matrices of one architecture can be compared entry by entry."
            )


def check_masks(masks: Mapping[str, torch.Tensor]) -> None:
    """Refuses masks that are not bool tensors.

    Raises:
        PruningError: with the name and the type of the first that is not.
    """
    for name, mask in masks.items():
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise PruningError(f"The mask of {name!r} must be a bool tensor, True where a weight is kept; got {kind}.")


_SIDES = ("first", "second")


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
