"""Accuracy after post-training pruning, without retraining, by budget, recovery and calibration sample.

The table: two models, FLOPs budgets from 0.7 down to 0.2, recovery none / mask_tuning / weights, three calibration
samples of 2,048 train rows; at 0.6 and 0.4 also the ablations of Kwon et al. (2022): without search, with and without
rearrangement, every layer alike, other importance metrics, 512 and 4,096 examples; from 0.5 down with the refit of
weights also scores that count on it, and scores without labels. Target: a mean loss over both tasks of at most 1.0
point at 0.5 of the FLOPs with the default settings.

Every cell is kept in the cache as soon as it is measured; a run that was interrupted goes on where it stopped. Choose
settings with --held-out, which evaluates on train rows that no calibration sample holds, and look at dev once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accuracy_cells import FIELDS, Cell, Request, cells_of
from accuracy_plot import plot_accuracy
from accuracy_tables import AccuracyResults, markdown_report
from arguments import benchmark_parser, prepare_run, write_results
from cell_arguments import (
    add_cache_arguments,
    add_choice_arguments,
    add_seed_argument,
    parse_filters,
    split_of,
)
from cells import CellCache, measure_cells
from datasets import Dataset
from evaluation import predicted_classes
from shared_gradients import SharedGradients
from tasks import TASKS, TaskRows, load_model, load_tokenizer
from transformers import DataCollatorWithPadding

from hf_prune.budget import flops_per_unit, total_flops
from hf_prune.calibration import CalibrationData
from hf_prune.errors import PruningError
from hf_prune.surgery import apply_plan


class TaskRun:
    """One task's dense model, what it predicts, and the calibration sample that is in use.

    Args:
        name: of the task.
        arguments: of the script.
        split: the rows to evaluate on.
    """

    def __init__(self, name: str, arguments: argparse.Namespace, split: str) -> None:
        task = TASKS[name]
        self.name = name
        self._model = load_model(task, arguments.models, arguments.device)
        tokenizer = load_tokenizer(task, arguments.models)
        self._collator = DataCollatorWithPadding(tokenizer)
        self._rows = TaskRows(task, arguments.data, tokenizer, self._model.config.label2id)
        self._evaluation: Dataset = self._rows.evaluation(split, arguments.max_eval)
        self._dense = predicted_classes(self._model, self._evaluation, self._collator)
        self._sample: tuple[Any, SharedGradients | None] = (None, None)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Prunes, evaluates, and puts the dense model back."""
        shared = self._shared(cell)
        anatomy = shared.anatomy
        start = time.perf_counter()
        cut = shared.cut(cell.config, cell.searched)
        seconds = time.perf_counter() - start
        log = apply_plan(self._model, anatomy, cut.plan, cut.repairs, shared.data.first())
        try:
            found = predicted_classes(self._model, self._evaluation, self._collator)
        finally:
            log.roll_back()
        labels = self._evaluation.with_format("torch")["labels"][:]
        kept = sum(cut.plan.count(block) * flops_per_unit(block, cut.lengths) for block in anatomy.blocks)
        return {
            "rows": len(labels),
            "dense_correct": int((self._dense == labels).sum()),
            "correct": int((found == labels).sum()),
            "agreed": int((found == self._dense).sum()),
            "flops_kept": kept / total_flops(anatomy, cut.lengths),
            "sequence_length": cut.sequence_length,
            "heads": [cut.plan.count(block) for block in anatomy.attentions],
            "filters": [cut.plan.count(block) for block in anatomy.feed_forwards],
            "notes": list(cut.notes),
            "seconds_without_gradients": seconds,
        }

    def _shared(self, cell: Cell) -> SharedGradients:
        key, shared = self._sample
        if key != cell.sample or shared is None:
            self._sample = (None, None)  # the old gradients go before the new ones come
            rows = self._rows.calibration(cell.seed, cell.examples)
            batch_size = cell.config.batch_size
            data = CalibrationData(rows, self._model, data_collator=self._collator, batch_size=batch_size)
            shared = SharedGradients(self._model, data)
            self._sample = (cell.sample, shared)
        return shared


class TaskRuns:
    """Measures cells of any task, with one task's model in memory at a time.

    Args:
        arguments: of the script.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._current: TaskRun | None = None

    def measure(self, cell: Cell) -> dict[str, Any]:
        """See `TaskRun.measure`."""
        if self._current is None or self._current.name != cell.task:
            self._current = None  # the old model goes before the new one comes
            self._current = TaskRun(cell.task, self._arguments, cell.request.split)
        return self._current.measure(cell)


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[Cell]]:
    """The options, and the cells that they ask for."""
    parser = benchmark_parser(__doc__)
    add_cache_arguments(parser, "accuracy")
    add_seed_argument(parser, 3, "calibration samples")
    add_choice_arguments(
        parser,
        "task=sst2 flops=0.5,0.4 recovery=weights ablation=full,uniform seed=0",
        "settings of FisherPruningConfig for every cell, values as JSON: refit_examples=1024",
    )
    parser.add_argument("--max-calibration", type=int, help="calibration examples at most, to try the script")
    parser.add_argument("--plot", type=Path, help="picture to write; default: beside --output")
    arguments = parser.parse_args(argv)
    try:
        settings = {name: json.loads(value) for name, _, value in (text.partition("=") for text in arguments.set)}
        request = Request(split_of(arguments), arguments.max_eval, arguments.max_calibration, settings, arguments.tag)
        cells = cells_of(request, arguments.seeds, parse_filters(arguments.only, FIELDS))
        for cell in cells[:1]:
            cell.settings()  # refuses settings that the configuration does not have
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return arguments, cells


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing and prints the tables."""
    arguments, cells = parse_arguments(argv)
    prepare_run(arguments)
    runs, cache = TaskRuns(arguments), CellCache(arguments.cache)
    measured = measure_cells(cells, cache, runs.measure, failure=PruningError, finished=arguments.finished)
    if not measured:
        sys.exit("No cells: nothing passes the filters, or (with --finished) nothing was measured yet.")
    results = AccuracyResults(measured)
    print(markdown_report(results, cells[0].request.split))
    summaries = [summary.to_dict() for summary in results.summaries()]
    raw = [{**cell.settings(), "ablation": cell.ablation, "measured": values} for cell, values in measured]
    models = {task: TASKS[task].model for task in results.tasks}
    write_results(arguments.output, {"models": models, "summaries": summaries, "cells": raw})
    picture = arguments.plot or (arguments.output.with_suffix(".png") if arguments.output else None)
    if picture is not None:
        plot_accuracy(results, picture)


if __name__ == "__main__":
    main()
