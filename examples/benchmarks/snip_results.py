"""What the study of SNIP has measured: models by their predictions, and the curves that they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from snip_cells import DENSE, KINDS, TABLES, Cell
from study_tables import Measured

from hf_prune.report import CurveLevel, MappingMaxima, TradeOffCurve

# What the paper reports for a task.
METRICS = {"sst2": "accuracy", "mrpc": "F1"}
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Predictions:
    """A model on the evaluation rows.

    Attributes:
        predicted, labels: classes `[rows]`; 1 is the positive one.
    """

    predicted: np.ndarray
    labels: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """1.0 for every row it has right."""
        return (self.predicted == self.labels).astype(float)

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracy and F1 of the positive class, in percent."""
        found, true = self.predicted == 1, self.labels == 1
        total = int(found.sum() + true.sum())
        f1 = 2 * int((found & true).sum()) / total if total else 0.0
        return {"accuracy": 100 * float(self.right.mean()), "F1": 100 * f1}


@dataclass(frozen=True)
class MeasuredCurve:
    """One training with all its levels.

    Attributes:
        cell: which.
        curve: the levels; their metrics are measured here.
        models: the levels' predictions.
        maxima: max|F| of the first level's mappings; empty where it was not measured.
        seconds: of the training.
    """

    cell: Cell
    curve: TradeOffCurve
    models: tuple[Predictions, ...]
    maxima: tuple[MappingMaxima, ...]
    seconds: float

    @classmethod
    def of(cls, cell: Cell, values: Measured) -> MeasuredCurve:
        """From what was measured of a cell."""
        curve, models = TradeOffCurve.from_dict(values["curve"]), predictions_of(values)
        pairs = zip(curve.levels, models, strict=True)
        levels = tuple(replace(level, metrics=model.metrics) for level, model in pairs)
        maxima = (
            MappingMaxima(item["key"], item["kind"], torch.tensor(item["values"], dtype=torch.float32))
            for item in values["maxima"]
        )
        return cls(cell, replace(curve, levels=levels), models, tuple(maxima), values["seconds"])

    @property
    def title(self) -> str:
        """For tables and pictures."""
        seed = f", seed {self.cell.seed}" if self.cell.seed else ""
        return f"{KINDS[self.cell.kind].title}{seed}"

    @property
    def metric(self) -> str:
        """The one that the paper reports for the task."""
        return METRICS[self.cell.task]

    def units(self, level: CurveLevel) -> tuple[int, int]:
        """How many heads and FFNs a level has."""
        kinds = self.curve.kinds
        heads = sum(len(kept) for key, kept in level.kept.items() if kinds[key] == "attention")
        return heads, sum(bool(kept) for key, kept in level.kept.items() if kinds[key] == "feed_forward")

    def simplest(self, reference: Predictions, most: float) -> int | None:
        """The smallest level that is at most so many points worse than another model; None where every level is."""
        least = reference.metrics[self.metric] - most - _ROUNDING
        able = [index for index, value in enumerate(self.curve.values(self.metric)) if value >= least]
        return min(able, key=lambda index: self.curve[index].params, default=None)

    def reaching(self, params: float) -> int | None:
        """The first level that keeps no more of the parameters than this; None where there is none."""
        found = (index for index, level in enumerate(self.curve.levels) if level.params <= params + _ROUNDING)
        return next(found, None)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        rows = []
        for level in self.curve.levels:
            heads, ffns = self.units(level)
            sizes = {"params": level.params, "flops": level.flops, "heads": heads, "ffns": ffns}
            rows.append({"iterations": level.details["iterations"], **sizes, **level.metrics})
        named = {"task": self.cell.task, "kind": self.cell.kind, "seed": self.cell.seed}
        return {**named, "seconds": self.seconds, "levels": rows}


def predictions_of(values: Measured) -> tuple[Predictions, ...]:
    """A measured cell's models."""
    labels = _classes(values["labels"])
    return tuple(Predictions(_classes(digits), labels) for digits in values["predicted"])


def _classes(digits: str) -> np.ndarray:
    return np.array([int(digit) for digit in digits])


class StudyResults:
    """Measured cells: curves, and the fully fine-tuned models that they are compared with.

    Args:
        measured: what was measured, by cell.
    """

    def __init__(self, measured: Sequence[tuple[Cell, Measured]]) -> None:
        self._dense = {
            (cell.task, cell.seed): predictions_of(values)[0] for cell, values in measured if cell.kind == DENSE
        }
        self._curves: Mapping[tuple[str, str, int], MeasuredCurve] = {
            (cell.task, cell.kind, cell.seed): MeasuredCurve.of(cell, values)
            for cell, values in measured
            if cell.kind != DENSE
        }

    @property
    def tasks(self) -> list[str]:
        """Those of which anything was measured."""
        found = {key[0] for key in (*self._dense, *self._curves)}
        return [task for task in TABLES if task in found]

    def dense(self, task: str, seed: int) -> Predictions | None:
        """The fully fine-tuned model; None where it was not measured."""
        return self._dense.get((task, seed))

    def seeds(self, task: str) -> list[int]:
        """Of the trainings that were measured."""
        pairs = [(key[0], key[-1]) for key in (*self._dense, *self._curves)]
        return sorted({seed for found, seed in pairs if found == task})

    def curve(self, task: str, kind: str, seed: int) -> MeasuredCurve | None:
        """None where it was not measured."""
        return self._curves.get((task, kind, seed))

    def curves(self, task: str) -> Iterator[MeasuredCurve]:
        """In the order of the kinds, then of the seeds."""
        order = sorted(key[1:] for key in self._curves if key[0] == task)
        yield from (self._curves[task, *key] for key in sorted(order, key=lambda key: TABLES[task].index(key[0])))
