"""Deliberate mistakes in surgery, which the comparison of masked and shrunk outputs has to catch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hf_prune.anatomy import cut
from hf_prune.anatomy.projections import Indices


def cut_in_reverse(patch: pytest.MonkeyPatch, path: str) -> None:
    """The right units of one projection, but in the wrong order."""
    _replace_units(patch, path, lambda units: list(reversed(units)), "_keep_units")


def cut_others(patch: pytest.MonkeyPatch, path: str) -> None:
    """One projection keeps as many units as the others, but its first one in place of the first that is to stay."""
    _replace_units(patch, path, lambda units: [0, *units[1:]], "_keep_units")


def cut_table_in_reverse(patch: pytest.MonkeyPatch, path: str) -> None:
    """The right heads of a position table, of a norm's weight or of a list of norms, but in the wrong order."""
    for step in ("_keep_slices", "_keep_members"):
        _replace_units(patch, path, lambda units: list(reversed(units)), step)


def _replace_units(patch: pytest.MonkeyPatch, path: str, change: Callable[[list[int]], list[int]], step: str) -> None:
    right, rows_of = getattr(cut, step), cut.kept_indices

    def mistaken_rows(owner: Indices, units: Sequence[int]) -> Indices:
        rows = rows_of(owner, units)
        mistaken = rows.copy()
        for unit, other in zip(units, change(list(units)), strict=True):
            mistaken[owner[rows] == unit] = np.flatnonzero(owner == other)
        return mistaken

    def keep(layer: Any, target: Any, *rest: Any) -> None:
        before, units, _ = rest[-3:]
        mistaken = getattr(target, "path", target) == path and 0 < len(units) < before
        cut.kept_indices = mistaken_rows if mistaken else rows_of
        right(layer, target, *rest)

    patch.setattr(cut, "kept_indices", rows_of)  # so that it is restored
    patch.setattr(cut, step, keep)
