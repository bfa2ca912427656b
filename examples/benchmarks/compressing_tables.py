"""The tables of the study "Compressing BERT", and what they say about the paper's claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from compressing_cells import TABLES, Cell
from markdown_tables import markdown_table, verdict
from study_tables import Difference, Measured, OverSeeds, evaluation_caption

from hf_prune.report import StudyRow

ALLOWED_LOSS = 0.5
# Nats; smaller changes of the MLM loss are not called a rise.
MLM_RISE = 0.01
LOW, RANDOM_FROM = (0.3, 0.4), 0.4
TITLES = {
    "pre-training": "A small BERT pruned during pre-training on WikiText-2, fine-tuned on SST-2",
    "fine-tuning": "all-MiniLM-L6-v2 pruned while, or after, it is fine-tuned on SST-2",
}


@dataclass(frozen=True)
class Entry(OverSeeds):
    """One kind of model at one level, over its seeds.

    Attributes:
        mlm_loss: of the model that was fine-tuned, in nats per guessed token; None where it was not pruned before.
    """

    table: str
    kind: str
    sparsity: float
    mlm_loss: float | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        names = ("table", "kind", "sparsity", "accuracy", "fit", "mlm_loss", "zeros", "seeds")
        return {name: getattr(self, name) for name in names}


class StudyResults:
    """Measured cells, by table, kind and level.

    Args:
        measured: what was measured, by cell.
    """

    def __init__(self, measured: Sequence[tuple[Cell, Measured]]) -> None:
        groups: dict[tuple[str, str, float], list[Measured]] = {}
        self._dense: dict[tuple[str, str, float], tuple[str, str, float]] = {}
        for cell, values in measured:
            key = (cell.table, cell.kind, cell.sparsity)
            groups.setdefault(key, []).append(values)
            self._dense[key] = cell.dense
        self._entries = {key: _entry(*key, values) for key, values in groups.items()}

    def get(self, table: str, kind: str, sparsity: float) -> Entry | None:
        """None where nothing was measured."""
        return self._entries.get((table, kind, sparsity))

    def entries(self, table: str) -> Iterator[Entry]:
        """In the order of the kinds, then of the levels."""
        for kind, levels in TABLES[table].items():
            for level in levels:
                entry = self.get(table, kind, level)
                if entry is not None:
                    yield entry

    def against_dense(self, entry: Entry) -> Difference | None:
        """The entry and the dense model that was trained for as many steps; None where that was not measured."""
        dense = self._entries.get(self._dense[entry.table, entry.kind, entry.sparsity])
        return None if dense is None or dense is entry else Difference.of(entry.right, dense.right)

    def between(self, table: str, kind: str, other: str, sparsity: float) -> Difference | None:
        """Two kinds at one level."""
        found = [self.get(table, name, sparsity) for name in (kind, other)]
        return None if None in found else Difference.of(*(entry.right for entry in found if entry is not None))

    def study_rows(self, table: str) -> list[StudyRow]:
        """For `plot_losses`."""
        return [
            StudyRow("SST-2", entry.sparsity, entry.mlm_loss, entry.accuracy / 100, entry.kind)
            for entry in self.entries(table)
        ]


def _entry(table: str, kind: str, sparsity: float, values: Sequence[Measured]) -> Entry:
    losses = [found["mlm_loss"] for found in values if found["mlm_loss"] is not None]
    mlm_loss = float(np.mean(losses)) if losses else None
    return Entry(**vars(OverSeeds.of(values)), table=table, kind=kind, sparsity=sparsity, mlm_loss=mlm_loss)


def markdown_report(results: StudyResults, split: str) -> str:
    """Both tables, and what they say."""
    parts = []
    for table in TABLES:
        entries = list(results.entries(table))
        if not entries:
            continue
        parts += [
            f"## {TITLES[table]}",
            f"{evaluation_caption(entries, split)} Differences are to the dense model that was trained for as many"
            " steps, with the 95 % interval of a paired comparison on these rows. Fit: accuracy on rows it was trained"
            " on.",
            markdown_table(*_table(results, entries)),
        ]
    claims = list(_claims(results))
    if claims:
        parts += ["## The paper's claims", markdown_table(("claim", "measured", "holds"), claims)]
    return "\n\n".join(parts)


def _table(results: StudyResults, entries: Sequence[Entry]) -> tuple[list[str], list[list[object]]]:
    with_loss = any(entry.mlm_loss is not None for entry in entries)
    rows = []
    for entry in entries:
        loss = [] if not with_loss else ["–" if entry.mlm_loss is None else f"{entry.mlm_loss:.3f}"]
        scores = [f"{entry.accuracy:.2f}", str(results.against_dense(entry) or ""), f"{entry.fit:.2f}"]
        rows.append([entry.kind, f"{entry.sparsity:.0%}", f"{entry.zeros:.1%}", *loss, *scores])
    loss_header = ["MLM loss"] if with_loss else []
    return ["kind", "removed", "zeros at the end", *loss_header, "accuracy", "difference", "fit"], rows


def _claims(results: StudyResults) -> Iterator[tuple[str, str, str]]:
    yield from _low_levels(results)
    yield from _against_random(results)
    yield from _regimes(results)


def _low_levels(results: StudyResults) -> Iterator[tuple[str, str, str]]:
    """30 to 40 % are free."""
    for table, kinds in (("pre-training", ("pruned",)), ("fine-tuning", ("during", "after"))):
        for kind in kinds:
            for level in LOW:
                entry = results.get(table, kind, level)
                found = None if entry is None else results.against_dense(entry)
                if found is not None:
                    holds = -found.points - found.half_width <= ALLOWED_LOSS
                    claim = f"{table}, {kind}: {level:.0%} cost at most {ALLOWED_LOSS} point beyond noise"
                    yield claim, str(found), verdict(holds)


def _against_random(results: StudyResults) -> Iterator[tuple[str, str, str]]:
    """Magnitude is better than chance from 40 % on."""
    pairs = (
        ("pre-training", "pruned", "random"),
        ("fine-tuning", "during", "random"),
        ("fine-tuning", "after", "random after"),
    )
    for table, kind, random in pairs:
        for level in TABLES[table][random]:
            found = results.between(table, kind, random, level)
            if level >= RANDOM_FROM and found is not None:
                yield f"{table}, {kind}: better than random at {level:.0%}", str(found), verdict(found.points > 0)


def _regimes(results: StudyResults) -> Iterator[tuple[str, str, str]]:
    """Low levels leave the pre-training loss, medium ones do not, and high ones cannot fit the task either."""
    table = "pre-training"
    dense = results.get(table, "pruned", 0.0)
    for level in TABLES[table]["pruned"][1:]:
        pruned, deleted = results.get(table, "pruned", level), results.get(table, "deleted", level)
        if dense is None or pruned is None or dense.mlm_loss is None or pruned.mlm_loss is None:
            continue
        rise = pruned.mlm_loss - dense.mlm_loss
        if level in LOW:
            yield f"{level:.0%} leave the MLM loss as it is", f"{rise:+.3f} nats", verdict(rise < MLM_RISE)
        else:
            yield f"{level:.0%} raise the MLM loss", f"{rise:+.3f} nats", verdict(rise >= MLM_RISE)
        if deleted is not None:
            lost, held = Difference.of(deleted.right, dense.right), Difference.of(pruned.right, deleted.right)
            yield f"{level:.0%}: what is deleted does not come back", str(lost), verdict(lost.points < 0 and lost.clear)
            fits = f"fit {pruned.fit:.2f} held, {deleted.fit:.2f} free; accuracy {held}"
            claim = f"{level:.0%}: zeros that are held cost more than the deletion"
            yield claim, fits, verdict(held.points < 0 and held.clear)
