"""Post-training pruning of small real models that are not BERT: a Llama, a GPT-2 and a ViT.

Each is pruned to 0.9, 0.8, 0.7, 0.5 and 0.3 of its FLOPs without training, on several calibration samples: with every
recovery and the paper's scores, and with the refit of weights also by scores that count on it and by blended ones, for
which no labels are needed. It is judged by what it was made for: perplexity on stories, inputs sorted without a mistake
(and the perplexity of what should come out), digits recognised.

Every cell is kept in the cache as soon as it is measured; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

from arguments import benchmark_parser, prepare_run, write_results
from cell_arguments import (
    Fields,
    add_cache_arguments,
    add_collection_argument,
    add_seed_argument,
    cell_cache,
    chosen_cells,
    parse_filters,
    passes,
)
from cells import measure_cells
from config_keys import PAPER_SCORES, config_key
from intervals import Estimate
from markdown_tables import markdown_table
from small_subjects import Digits, Sorter, SortingPerplexity, Stories, Subject

from hf_prune import FisherPruningConfig, InfeasibleBudgetError, PruningError, prune_model

FLOPS = (0.9, 0.8, 0.7, 0.5, 0.3)
MODES: Mapping[str, Mapping[str, Any]] = {
    "none": {"recovery": "none"},
    "mask_tuning": {"recovery": "mask_tuning"},
    "weights": {},
    "after_refit": {"importance": "after_refit"},
    "after_refit_model_labels": {"importance": "after_refit", "labels": "model"},
    "blended": {"importance": "blended", "labels": "model"},
}
SUBJECTS = ("stories", "sorting_perplexity", "sorter", "digits")
FIELDS: Fields = {"subject": SUBJECTS, "mode": MODES, "flops": FLOPS, "seed": None}


@dataclass(frozen=True)
class Cell:
    """One pruned model to be measured."""

    subject: str
    flops: float
    mode: str
    seed: int
    round_to: int
    tag: str

    @property
    def config(self) -> FisherPruningConfig:
        """The configuration that is measured."""
        settings = {**PAPER_SCORES, **MODES[self.mode]}
        return FisherPruningConfig(flops=self.flops, round_to=self.round_to, **settings)

    @property
    def name(self) -> str:
        """A readable name for the cache."""
        return f"{self.subject}-{self.flops}-{self.mode}-seed{self.seed}"

    @property
    def title(self) -> str:
        """For people."""
        return self.name

    def settings(self) -> dict[str, Any]:
        """Everything that the measured numbers depend on, except for the code."""
        return {"subject": self.subject, "seed": self.seed, "tag": self.tag, "config": config_key(self.config)}


Measured = Sequence[tuple[Cell, Mapping[str, Any]]]


def subject_maker(arguments: argparse.Namespace) -> Callable[[str], Subject]:
    """Makes each subject once, as soon as it is asked for: reading and training take a while."""
    makers: dict[str, Callable[[], Subject]] = {
        "stories": lambda: Stories(arguments.models, arguments.data),
        "sorting_perplexity": lambda: SortingPerplexity(arguments.models),
        "sorter": lambda: Sorter(arguments.models),
        "digits": Digits,
    }
    return cache(lambda name: makers[name]())


def measure(subject: Subject, cell: Cell) -> dict[str, Any]:
    """The pruned model's score and size, and how long pruning took."""
    model = subject.model()
    start = time.perf_counter()
    try:
        report = prune_model(model, cell.config, subject.calibration(cell.seed)).report
    except InfeasibleBudgetError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - start
    return {"kept_flops": report.pruned.flops / report.dense.flops, "score": subject.score(model), "seconds": seconds}


def table(subject: Subject, dense: float, measured: Measured) -> str:
    """One row per budget, one column per mode, and how long each mode takes on average."""
    modes = [mode for mode in MODES if any(cell.mode == mode for cell, _ in measured)]
    rows = []
    for flops in sorted({cell.flops for cell, _ in measured}, reverse=True):
        found = [_values(measured, "score", mode, flops) for mode in modes]
        rows.append([f"{flops}", *(str(Estimate.of(scores)) if scores else "–" for scores in found)])
    times = [_values(measured, "seconds", mode) for mode in modes]
    rows.append(["seconds", *(f"{fmean(seconds):.1f}" if seconds else "–" for seconds in times)])
    direction = "lower is better" if subject.lower_is_better else "higher is better"
    caption = f"Dense: {dense:.2f}. Below: {subject.metric} after pruning ({direction}), mean ± 95 % interval."
    return f"## {subject.title}\n\n{caption}\n\n{markdown_table(['FLOPs', *modes], rows)}\n"


def _values(measured: Measured, name: str, mode: str, flops: float | None = None) -> list[float]:
    return [
        values[name]
        for cell, values in measured
        if cell.mode == mode and flops in (None, cell.flops) and name in values
    ]


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[Cell]]:
    """The options, and the cells that they ask for."""
    parser = benchmark_parser(__doc__)
    add_cache_arguments(parser, "other_architectures")
    add_collection_argument(parser)
    add_seed_argument(parser, 3, "calibration samples")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="FIELD=VALUES",
        help="cells to measure: subject=stories mode=weights,after_refit flops=0.7,0.5",
    )
    parser.add_argument("--finished", action="store_true", help="measure nothing, show the cells that are finished")
    parser.add_argument(
        "--round-to", type=int, default=1, help="widths are multiples of this; these models are too small for 8"
    )
    arguments = parser.parse_args(argv)

    def asked_for() -> Iterator[Cell]:
        allowed = parse_filters(arguments.only, FIELDS)
        return (cell for cell in _every_cell(arguments) if passes(cell, allowed))

    return arguments, chosen_cells(parser, asked_for)


def _every_cell(arguments: argparse.Namespace) -> Iterator[Cell]:
    for subject in SUBJECTS:
        for seed in range(arguments.seeds):
            for flops in FLOPS:
                for mode in MODES:
                    yield Cell(subject, flops, mode, seed, arguments.round_to, arguments.tag)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints one table per model."""
    arguments, cells = parse_arguments(argv)
    prepare_run(arguments)
    subject_of = subject_maker(arguments)
    measured = measure_cells(
        cells,
        cell_cache(arguments),
        lambda cell: measure(subject_of(cell.subject), cell),
        failure=PruningError,
        finished=arguments.finished,
    )
    if not measured:
        sys.exit("No cells: nothing passes the filters, or (with --finished) nothing was measured yet.")
    results = []
    for name in SUBJECTS:
        own = [(cell, values) for cell, values in measured if cell.subject == name]
        if own:
            subject = subject_of(name)
            dense = subject.score(subject.model())
            print(table(subject, dense, own), flush=True)
            raw = [{"flops": cell.flops, "mode": cell.mode, "seed": cell.seed, **values} for cell, values in own]
            results.append({"model": subject.title, "metric": subject.metric, "dense": dense, "cells": raw})
    write_results(arguments.output, {"round_to": arguments.round_to, "subjects": results})


if __name__ == "__main__":
    main()
