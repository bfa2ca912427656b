"""The tables of the study of head pruning, and what they say about the paper's claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from head_pruning_cells import HALF, KINDS, NONE, RANDOM, RETRAINED, SINGLE_SHOT, SWEEP, TABLES, Cell
from head_pruning_tasks import STS, TASKS
from intervals import Estimate
from markdown_tables import markdown_table, verdict
from study_tables import Difference, Measured, evaluation_caption

MOST_SECONDS = 20 * 60
ALLOWED_LOSS = 0.5


@dataclass(frozen=True)
class Entry:
    """Fine-tuned models that differ in nothing but the seed.

    Attributes:
        heads: the share of the heads that was asked for.
        kept: the share that is left.
        right: by row, the share of the seeds that have it right.
        seconds: of all its fine-tunings, the mean.
        peak_bytes: the highest peak of their memory, the mean.
        seeds: how many.
    """

    task: str
    kind: str
    heads: float
    kept: float
    right: np.ndarray
    seconds: float
    peak_bytes: float
    seeds: int

    @classmethod
    def of(cls, key: tuple[str, str, float], values: Sequence[Measured]) -> Entry:
        """From what was measured of each."""
        means = {name: float(np.mean([found[name] for found in values])) for name in ("kept", "seconds", "peak_bytes")}
        right = np.mean([[float(sign) for sign in found["right"]] for found in values], axis=0)
        return cls(*key, right=right, seeds=len(values), **means)

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float(self.right.mean())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        names = ("task", "kind", "heads", "kept", "accuracy", "seconds", "peak_bytes", "seeds")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class StsEntry:
    """Encoders that were not fine-tuned and differ in nothing but the seed: correlations, times 100."""

    kind: str
    heads: float
    kept: float
    spearman: Estimate
    pearson: Estimate
    pairs: int
    seeds: int

    @classmethod
    def of(cls, kind: str, heads: float, values: Sequence[Measured]) -> StsEntry:
        """From what was measured of each."""
        spearman, pearson = (Estimate.of([100 * found[name] for found in values]) for name in ("spearman", "pearson"))
        kept = float(np.mean([found["kept"] for found in values]))
        return cls(kind, heads, kept, spearman, pearson, values[0]["pairs"], len(values))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        numbers = {"spearman": self.spearman.mean, "pearson": self.pearson.mean}
        return {"task": STS.name, "kind": self.kind, "heads": self.heads, "kept": self.kept, **numbers}


class StudyResults:
    """Measured cells, by task, kind and share of heads.

    Args:
        measured: what was measured, by cell.

    Attributes:
        pruner: seconds, episodes and validation losses of the meta-training; None where no cell needed it.
    """

    def __init__(self, measured: Sequence[tuple[Cell, Measured]]) -> None:
        groups: dict[tuple[str, str, float], list[Measured]] = {}
        for cell, values in measured:
            groups.setdefault((cell.task, cell.kind, cell.heads), []).append(values)
        self.pruner = next((values["pruner"] for _, values in measured if "pruner" in values), None)
        self._entries = {key: Entry.of(key, values) for key, values in groups.items() if key[0] != STS.name}
        self._sts = {key[1:]: StsEntry.of(*key[1:], values) for key, values in groups.items() if key[0] == STS.name}

    def get(self, task: str, kind: str, heads: float) -> Entry | None:
        """None where nothing was measured."""
        return self._entries.get((task, kind, heads))

    def entries(self, task: str) -> list[Entry]:
        """In the order of the kinds, then of the shares."""
        found = (self.get(task, kind, heads) for kind, levels in TABLES[task].items() for heads in levels)
        return [entry for entry in found if entry is not None]

    def similarity(self, kind: str, heads: float) -> StsEntry | None:
        """None where nothing was measured."""
        return self._sts.get((kind, heads))

    def similarities(self) -> list[StsEntry]:
        """In the order of the kinds, then of the shares."""
        found = (self.similarity(kind, heads) for kind, levels in TABLES[STS.name].items() for heads in levels)
        return [entry for entry in found if entry is not None]

    def between(self, task: str, kind: str, other: str, heads: float) -> Difference | None:
        """Two kinds that keep as many heads, or one and the model that keeps all; None where one was not measured."""
        pair = self.get(task, kind, heads), self.get(task, other, 1.0 if other == NONE else heads)
        if pair[0] is None or pair[1] is None or kind == other:
            return None
        return Difference.of(pair[0].right, pair[1].right)

    def mean_between(self, kind: str, other: str, heads: float) -> Difference | None:
        """The mean over all tasks; None where one of them lacks."""
        found = [each for task in TASKS if (each := self.between(task, kind, other, heads)) is not None]
        if len(found) < len(TASKS):
            return None
        width = math.sqrt(sum(each.half_width**2 for each in found)) / len(found)
        return Difference(sum(each.points for each in found) / len(found), width)


def markdown_report(results: StudyResults, split: str) -> str:
    """A table per task, and what they say."""
    parts = []
    if results.pruner is not None:
        losses = results.pruner["losses"]
        parts += [
            "## The meta-pruner",
            f"{results.pruner['episodes']:,} episodes in {results.pruner['seconds'] / 60:.1f} minutes; validation loss"
            f" {losses[0]:.4g} before, {min(losses):.4g} at best.",
        ]
    for task, rows in TASKS.items():
        entries = results.entries(task)
        if entries:
            parts += [
                f"## {rows.title}",
                f"{evaluation_caption(entries, split)} Differences have the 95 % interval of a paired comparison on"
                " these rows; that to random is at the same number of heads.",
                markdown_table(*_table(results, entries)),
            ]
    if results.similarities():
        parts += ["## STS-B, without any training", *_similarity_table(results.similarities(), split)]
    claims = list(_claims(results))
    if claims:
        parts += ["## The paper's claims", markdown_table(("claim", "measured", "holds"), claims)]
    return "\n\n".join(parts)


def _table(results: StudyResults, entries: Sequence[Entry]) -> tuple[list[str], list[list[object]]]:
    rows: list[list[object]] = []
    for entry in entries:
        pairs = [results.between(entry.task, entry.kind, other, entry.heads) for other in (NONE, RANDOM)]
        cost = [f"{entry.seconds:.0f}", f"{entry.peak_bytes / 2**20:,.0f}"]
        differences = [str(found or "") for found in pairs]
        rows.append([KINDS[entry.kind], f"{entry.kept:.0%}", f"{entry.accuracy:.2f}", *differences, *cost, entry.seeds])
    headers = ["heads pruned", "kept", "accuracy", "to none", "to random", "fine-tuning (s)", "peak MiB", "seeds"]
    return headers, rows


def _similarity_table(entries: Sequence[StsEntry], split: str) -> tuple[str, str]:
    rows = [
        [KINDS[entry.kind], f"{entry.kept:.0%}", str(entry.spearman), str(entry.pearson), entry.seeds]
        for entry in entries
    ]
    where = "dev" if split == "dev" else "train"
    caption = (
        f"Correlation × 100 of the similarity of mean-pooled sentence vectors with gold scores, {entries[0].pairs:,}"
        f" {where} pairs; the interval is that over the seeds."
    )
    return caption, markdown_table(["heads pruned", "kept", "Spearman", "Pearson", "seeds"], rows)


def _claims(results: StudyResults) -> Iterator[tuple[str, str, str]]:
    if results.pruner is not None:
        seconds = results.pruner["seconds"]
        yield "the pruner is trained within 20 minutes", f"{seconds / 60:.1f} min", verdict(seconds <= MOST_SECONDS)
    for other, least, what in (
        (RANDOM, 0.0, "ahead of the mean of random"),
        (RETRAINED, -ALLOWED_LOSS, f"within {ALLOWED_LOSS} point of HISP-retrain"),
    ):
        found = {rows.title: results.between(task, SINGLE_SHOT, other, HALF) for task, rows in TASKS.items()}
        for where, gap in {"mean of the tasks": results.mean_between(SINGLE_SHOT, other, HALF), **found}.items():
            if gap is not None:
                yield f"{where}, {HALF:.0%} of the heads: {what}", str(gap), verdict(gap.points >= least)
    for heads in SWEEP:
        gap = results.between("qnli", SINGLE_SHOT, RANDOM, heads)
        if gap is not None and heads != HALF:
            yield f"QNLI, {heads:.0%} of the heads: ahead of the mean of random", str(gap), verdict(gap.points >= 0)
    yield from _cost_claims(results)
    yield from _similarity_claims(results)


def _cost_claims(results: StudyResults) -> Iterator[tuple[str, str, str]]:
    one, other = results.get("qnli", SINGLE_SHOT, HALF), results.get("qnli", NONE, 1.0)
    if one is not None and other is not None:
        for what, name in (("time", "seconds"), ("memory", "peak_bytes")):
            less, dense = getattr(one, name), getattr(other, name)
            measured = f"{less / dense:.2f} ×" if dense else "nothing beyond what was free"
            yield f"QNLI, {HALF:.0%} of the heads: fine-tuning takes less {what}", measured, verdict(less < dense)


def _similarity_claims(results: StudyResults) -> Iterator[tuple[str, str, str]]:
    for heads in SWEEP:
        one, other = (results.similarity(kind, heads) for kind in (SINGLE_SHOT, RANDOM))
        if one is not None and other is not None:
            gap = one.pearson.mean - other.pearson.mean
            claim = f"STS-B, {heads:.0%} of the heads: Pearson above the mean of random"
            yield claim, f"{gap:+.2f}", verdict(gap >= 0)
