"""Trained models over their seeds, and the difference of two on the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from intervals import LEVEL, binomial_half_width
from scipy import stats

Measured = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """Two models on the same rows.

    Attributes:
        points: accuracy of the first minus that of the second, in points.
        half_width: of the 95 % interval for the choice of the rows, paired, in points.
    """

    points: float
    half_width: float

    @classmethod
    def of(cls, one: np.ndarray, other: np.ndarray) -> Difference:
        """From the share of seeds that have each row right."""
        gap = 100 * (one - other)
        quantile = float(stats.norm.ppf((1 + LEVEL) / 2))
        return cls(float(gap.mean()), quantile * float(gap.std(ddof=1)) / math.sqrt(len(gap)))

    @property
    def clear(self) -> bool:
        """Whether it is more than the choice of the rows explains."""
        return abs(self.points) > self.half_width

    def __str__(self) -> str:
        return f"{self.points:+.2f} ± {self.half_width:.2f}"


@dataclass(frozen=True)
class OverSeeds:
    """Models that differ in nothing but the seed.

    Attributes:
        right: by row, the share of the seeds that have it right.
        fit: accuracy on rows they were trained on, in percent.
        zeros: the share of zeros in the matrices that are pruned.
        seeds: how many.
    """

    right: np.ndarray
    fit: float
    zeros: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[Measured]) -> OverSeeds:
        """From what was measured of each."""
        return cls(
            right=np.mean([[float(sign) for sign in found["right"]] for found in values], axis=0),
            fit=100 * float(np.mean([found["fit"] for found in values])),
            zeros=float(np.mean([found["zeros"] for found in values])),
            seeds=len(values),
        )

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float(self.right.mean())


def evaluation_caption(models: Sequence[OverSeeds], split: str) -> str:
    """How many rows and seeds a table is about."""
    rows = "dev" if split == "dev" else "held-out train"
    width = 100 * binomial_half_width(models[0].accuracy / 100, len(models[0].right))
    seeds = max(model.seeds for model in models)
    return (
        f"Accuracy on {len(models[0].right):,} {rows} rows (± {width:.2f} for the choice of the rows), {seeds}"
        f" seed{'s' if seeds > 1 else ''}."
    )
