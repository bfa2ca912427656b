"""What comparisons of matrices share: the matrices must agree, and results are shares of their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..errors import PruningError


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


def share_of(part: float, whole: float) -> float:
    """`part / whole`; NaN if there is nothing to have a share of."""
    return part / whole if whole else math.nan


_SIDES = ("first", "second")


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
