"""The tables of the study of static masks, and what they say about the paper's claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markdown_tables import markdown_table, verdict
from static_mask_cells import (
    ABLATED,
    DENSE,
    KINDS,
    LOCAL,
    MOVEMENT,
    NEW_HEAD,
    PLAIN,
    SCORE,
    TABLES,
    TAUGHT,
    Cell,
)
from study_tables import Difference, Measured, OverSeeds, evaluation_caption
from tasks import TASKS

AHEAD, ALLOWED_LOSS = 1.0, 0.5
HIGH, LOW = (0.1, 0.03), 0.8
HELPS = {
    TAUGHT: "a teacher helps",
    PLAIN: "the regulariser helps",
    NEW_HEAD: "label words are better than a trained head",
}


@dataclass(frozen=True)
class Entry(OverSeeds):
    """One kind of model at one level, over its seeds.

    Attributes:
        remaining: the share of the weights that was asked for.
        matrices: by parameter, how many of its weights remain, and how many there are, over all seeds.
        heads: by block, the share of zeros in every head.
    """

    task: str
    kind: str
    remaining: float
    matrices: dict[str, np.ndarray]
    heads: dict[str, np.ndarray]

    @property
    def kept(self) -> float:
        """The share of the layers' weights that remains in fact; `zeros` is about the embeddings, too."""
        remaining, weights = np.sum(list(self.matrices.values()), axis=0)
        return float(remaining / weights)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        names = ("task", "kind", "remaining", "kept", "accuracy", "fit", "seeds")
        return {name: getattr(self, name) for name in names}


class StudyResults:
    """Measured cells, by task, kind and level.

    Args:
        measured: what was measured, by cell.
    """

    def __init__(self, measured: Sequence[tuple[Cell, Measured]]) -> None:
        groups: dict[tuple[str, str, float], list[Measured]] = {}
        for cell, values in measured:
            groups.setdefault((cell.task, cell.kind, cell.remaining), []).append(values)
        self._entries = {key: _entry(*key, values) for key, values in groups.items()}

    def get(self, task: str, kind: str, remaining: float) -> Entry | None:
        """None where nothing was measured."""
        return self._entries.get((task, kind, remaining))

    def entries(self, task: str) -> list[Entry]:
        """In the order of the kinds, then of the levels."""
        found = (self.get(task, kind, level) for kind, levels in TABLES[task].items() for level in levels)
        return [entry for entry in found if entry is not None]

    def between(self, task: str, kind: str, other: str, remaining: float) -> Difference | None:
        """Two kinds at one level, or one and the dense model; None where one was not measured."""
        pair = self.get(task, kind, remaining), self.get(task, other, 1.0 if other == DENSE else remaining)
        if pair[0] is None or pair[1] is None or pair[0] is pair[1]:
            return None
        return Difference.of(pair[0].right, pair[1].right)


def _entry(task: str, kind: str, remaining: float, values: Sequence[Measured]) -> Entry:
    names = values[0]["matrices"]
    matrices = {name: np.sum([found["matrices"][name] for found in values], axis=0) for name in names}
    heads = {block: np.mean([found["heads"][block] for found in values], axis=0) for block in values[0]["heads"]}
    return Entry(
        **vars(OverSeeds.of(values)), task=task, kind=kind, remaining=remaining, matrices=matrices, heads=heads
    )


def markdown_report(results: StudyResults, split: str) -> str:
    """A table per task, and what they say."""
    parts = []
    for task in TABLES:
        entries = results.entries(task)
        if entries:
            parts += [
                f"## {TASKS[task].title}",
                f"{evaluation_caption(entries, split)} Differences have the 95 % interval of a paired comparison on"
                " these rows; that to movement pruning is at the same level. Fit: accuracy on rows it was trained on.",
                markdown_table(*_table(results, entries)),
            ]
    claims = list(_claims(results))
    if claims:
        parts += ["## The paper's claims", markdown_table(("claim", "measured", "holds"), claims)]
    return "\n\n".join(parts)


def _table(results: StudyResults, entries: Sequence[Entry]) -> tuple[list[str], list[list[object]]]:
    rows: list[list[object]] = []
    for entry in entries:
        pairs = [results.between(entry.task, entry.kind, other, entry.remaining) for other in (DENSE, MOVEMENT)]
        differences = [str(found or "") for found in pairs]
        shares = [f"{entry.remaining:.0%}", f"{entry.kept:.1%}"]
        scores = [f"{entry.accuracy:.2f}", *differences, f"{entry.fit:.2f}", entry.seeds]
        rows.append([KINDS[entry.kind].title, *shares, *scores])
    headers = ["kind", "remaining", "not zero", "accuracy", "to dense", "to movement", "fit", "seeds"]
    return headers, rows


def _claims(results: StudyResults) -> Iterator[tuple[str, str, str]]:
    for task in TABLES:
        for masking in (LOCAL, SCORE):
            yield from _against_the_others(results, task, masking)
        for level in HIGH:
            found = results.between(task, SCORE, LOCAL, level)
            if found is not None:
                yield f"{TASKS[task].title}: score no worse than local at {level:.0%}", *_judged(found, 0)
        yield from _ablations(results, task)


def _against_the_others(results: StudyResults, task: str, masking: str) -> Iterator[tuple[str, str, str]]:
    """Ahead of movement pruning where little remains, and as good as full fine-tuning where most does."""
    claim = f"{TASKS[task].title}, {masking}"
    for level in HIGH:
        found = results.between(task, masking, MOVEMENT, level)
        if found is not None:
            yield f"{claim}: at least {AHEAD:.0f} point ahead of movement at {level:.0%}", *_judged(found, AHEAD)
    found = results.between(task, masking, DENSE, LOW)
    if found is not None:
        yield f"{claim}: within {ALLOWED_LOSS} of full fine-tuning at {LOW:.0%}", *_judged(found, -ALLOWED_LOSS)


def _ablations(results: StudyResults, task: str) -> Iterator[tuple[str, str, str]]:
    """What is better with a part of the method than without."""
    for name, kind in KINDS.items():
        if kind.masking is not None and kind.variant is not None:
            pair = (name, kind.masking) if kind.variant == TAUGHT else (kind.masking, name)
            found = results.between(task, *pair, ABLATED)
            if found is not None:
                claim = f"{TASKS[task].title}, {kind.masking}: {HELPS[kind.variant]} at {ABLATED:.0%}"
                yield claim, str(found), verdict(found.points > 0)


def _judged(found: Difference, least: float) -> tuple[str, str]:
    return str(found), verdict(found.points >= least)
