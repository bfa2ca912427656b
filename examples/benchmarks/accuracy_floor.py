"""The smallest model that keeps the accuracy: what `max_metric_drop` returns for half a point, one point and two.

For each task, drop and calibration sample of 2,048 train rows, one whole call of `prune_model`: the FLOPs that it gets
down to, the accuracy there, and every size that it tried; or why no smaller model keeps so much. The accuracy is that
of the rows that the size was chosen on, so it holds the floor by construction; what is measured is how small that is.

Every cell is kept in the cache as soon as it is measured; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accuracy_cells import EXAMPLES, Request
from arguments import benchmark_parser, prepare_run, write_results
from cell_arguments import (
    Fields,
    add_cache_arguments,
    add_choice_arguments,
    add_collection_argument,
    add_seed_argument,
    cell_cache,
    chosen_cells,
    parse_filters,
    passes,
)
from cells import measure_cells
from config_keys import config_key
from datasets import Dataset
from markdown_tables import markdown_table
from tasks import TASKS, TaskRows, load_model, load_tokenizer
from transformers import DataCollatorWithPadding

from hf_prune import FisherPruningConfig, InfeasibleBudgetError, PruningError, prune_model
from hf_prune.commands.metrics import classification_accuracy

DROPS = (0.005, 0.01, 0.02)
METRIC = "accuracy"
FIELDS: Fields = {"task": TASKS, "drop": DROPS, "seed": None}


@dataclass(frozen=True)
class Cell:
    """One floor to be kept."""

    task: str
    drop: float
    seed: int
    request: Request

    @property
    def examples(self) -> int:
        """Calibration examples."""
        return self.request.examples(EXAMPLES)

    @property
    def config(self) -> FisherPruningConfig:
        """What `prune_model` is asked for."""
        return FisherPruningConfig(max_metric_drop=self.drop, metric=METRIC, **self.request.settings)

    @property
    def name(self) -> str:
        """A readable name for the cache."""
        return f"{self.task}-{self.request.split}-drop{self.drop}-seed{self.seed}"

    @property
    def title(self) -> str:
        """For people."""
        return self.name

    def settings(self) -> dict[str, Any]:
        """Everything that the measured numbers depend on, except for the code."""
        request = self.request
        return {
            "task": self.task,
            "split": request.split,
            "max_eval": request.max_eval,
            "examples": self.examples,
            "seed": self.seed,
            "config": config_key(self.config),
            "tag": request.tag,
        }


def measure(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """The size that was found, with all that were tried; or why there is none."""
    task = TASKS[cell.task]
    model, tokenizer = load_model(task, arguments.models, arguments.device), load_tokenizer(task, arguments.models)
    rows = TaskRows(task, arguments.data, tokenizer, model.config.label2id)
    calibration = rows.calibration(cell.seed, cell.examples)
    evaluation = by_length(rows.evaluation(cell.request.split, cell.request.max_eval))
    start = time.perf_counter()
    try:
        result = prune_model(
            model,
            cell.config,
            calibration,
            data_collator=DataCollatorWithPadding(tokenizer),
            eval_dataset=evaluation,
            compute_metrics=classification_accuracy,
        )
    except InfeasibleBudgetError as error:
        return {"refused": str(error), "rows": len(evaluation), "seconds": time.perf_counter() - start}
    assert result.curve is not None
    report = result.report
    return {
        "rows": len(evaluation),
        "flops_kept": report.pruned.flops / report.dense.flops,
        **{side: report.metrics[side][METRIC] for side in ("dense", "pruned")},
        "tried": [[level.flops, level.metrics[METRIC]] for level in result.curve.levels[1:]],
        "notes": list(report.notes),
        "seconds": time.perf_counter() - start,
    }


def by_length(rows: Dataset) -> Dataset:
    """Tokenised rows in an order in which batches need little padding."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    return rows.select(sorted(range(len(rows)), key=lengths.__getitem__))


def table(measured: Sequence[tuple[Cell, Mapping[str, Any]]]) -> str:
    """A row per cell, and below it why where there is no smaller model."""
    rows, refusals = [], []
    for cell, found in measured:
        place: list[object] = [TASKS[cell.task].title, f"{100 * cell.drop:g}", cell.seed]
        if "refused" in found:
            rows.append([*place, "none", "", "", "", f"{found['seconds']:.0f}"])
            refusals.append(f"{cell.title}: {found['refused']}")
        else:
            drop = 100 * (found["dense"] - found["pruned"])
            accuracies = [f"{100 * found[side]:.2f}" for side in ("dense", "pruned")]
            sizes = f"{found['flops_kept']:.3f} (of {len(found['tried'])})"
            rows.append([*place, sizes, *accuracies, f"{drop:+.2f}", f"{found['seconds']:.0f}"])
    headers = ["task", "allowed", "sample", "FLOPs kept (of sizes tried)", "dense", "pruned", "lost", "seconds"]
    return "\n\n".join([markdown_table(headers, rows), *refusals])


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[Cell]]:
    """The options, and the cells that they ask for."""
    parser = benchmark_parser(__doc__)
    add_cache_arguments(parser, "accuracy_floor")
    add_collection_argument(parser)
    add_seed_argument(parser, 1, "calibration samples")
    add_choice_arguments(
        parser,
        "task=sst2 drop=0.01",
        'settings of FisherPruningConfig for every cell, values as JSON: labels="model"',
    )
    parser.add_argument("--max-calibration", type=int, help="calibration examples at most, to try the script")
    arguments = parser.parse_args(argv)

    def asked_for() -> Iterator[Cell]:
        request, allowed = Request.of(arguments), parse_filters(arguments.only, FIELDS)
        return (cell for cell in _every_cell(request, arguments.seeds) if passes(cell, allowed))

    return arguments, chosen_cells(parser, asked_for)


def _every_cell(request: Request, seeds: int) -> Iterator[Cell]:
    for task in TASKS:
        for drop in DROPS:
            for seed in range(seeds):
                yield Cell(task, drop, seed, request)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing and prints the table."""
    arguments, cells = parse_arguments(argv)
    prepare_run(arguments)
    cache = cell_cache(arguments)
    measured = measure_cells(
        cells, cache, lambda cell: measure(cell, arguments), failure=PruningError, finished=arguments.finished
    )
    if not measured:
        sys.exit("No cells: nothing passes the filters, or (with --finished) nothing was measured yet.")
    rows = "held-out train rows" if arguments.held_out else "dev"
    print(f"## The smallest model that keeps the accuracy on {rows}, drops in points\n")
    print(table(measured))
    raw = [{**cell.settings(), "measured": values} for cell, values in measured]
    write_results(arguments.output, {"models": {task.name: task.model for task in TASKS.values()}, "cells": raw})


if __name__ == "__main__":
    main()
