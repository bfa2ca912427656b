"""Accuracy after post-training pruning, without retraining, by budget, recovery and calibration sample.

The table: two models, FLOPs budgets from 0.7 down to 0.2, recovery none / mask_tuning / weights with the paper's
scores, three calibration samples of 2,048 train rows; at 0.6 and 0.4 also the ablations of Kwon et al. (2022): without
search, with and without rearrangement, every layer alike, other importance metrics, 512 and 4,096 examples. From 0.5
down the modes: the paper's beside the refit of weights with its scores, with scores that count on the refit, blended
ones and scores without labels, and iterative; at 0.3 and 0.2 also what an epoch of recovery training on
8,000 rows adds to each. Targets, for the mean loss over both tasks: at most 1.0 point at 0.5 of the FLOPs with the
paper's scores and the refit; with the best mode 0.5 at 0.5, 1.0 at 0.4, 2.0 at 0.3 and 5.0 at 0.2.

Seconds are those of the whole pruning, as if each cell had been alone; the result is not timed. Every cell is kept in
the cache as soon as it is measured; a run that was interrupted goes on where it stopped. Choose settings with
--held-out, which evaluates on train rows that no calibration sample holds, and look at dev once. The recovery training
has settings of its own, --training, for which the same holds.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accuracy_cells import FIELDS, Cell, Request, cells_of
from accuracy_plot import plot_accuracy
from accuracy_results import AccuracyResults
from accuracy_tables import markdown_report
from accuracy_training import Training, train_pruned
from arguments import benchmark_parser, prepare_run, write_results
from cell_arguments import (
    add_cache_arguments,
    add_choice_arguments,
    add_collection_argument,
    add_seed_argument,
    cell_cache,
    chosen_cells,
    parse_filters,
    parse_settings,
)
from cells import measure_cells
from datasets import Dataset
from evaluation import predicted_classes
from shared_statistics import SharedStatistics
from tasks import TASKS, TaskRows, load_model, load_tokenizer
from transformers import DataCollatorWithPadding, PreTrainedModel

from hf_prune import FisherPruningConfig
from hf_prune.errors import PruningError
from hf_prune.pruning_run import Evaluation, PruningRun


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
        self._sample: tuple[Any, SharedStatistics | None] = (None, None)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Prunes a copy of the dense model, trains it if that is asked for, and evaluates it."""
        config = cell.config
        shared = self._shared(cell, config)
        cut, seconds = shared.cut(config, cell.searched)
        start = time.perf_counter()
        with shared.run.applied(config, cut, timed=False) as made:
            seconds += time.perf_counter() - start
            pruned = copy.deepcopy(self._model)
        made.log.roll_back()
        measured = {
            "flops_kept": made.report.pruned.flops / made.report.dense.flops,
            "sequence_length": cut.sequence_length,
            "heads": [cut.plan.count(block) for block in shared.run.anatomy.attentions],
            "filters": [cut.plan.count(block) for block in shared.run.anatomy.feed_forwards],
            "notes": list(cut.notes),
            "seconds": seconds,
        }
        if cell.training is not None:
            measured["training_seconds"] = self._train(pruned, cell.training, cell.seed)
        return measured | self._evaluated(pruned)

    def _train(self, pruned: PreTrainedModel, training: Training, seed: int) -> float:
        """Seconds of the recovery training."""
        rows = self._rows.calibration(seed, training.rows)
        start = time.perf_counter()
        train_pruned(pruned, self._model, rows, self._collator, training, seed)
        return time.perf_counter() - start

    def _evaluated(self, pruned: PreTrainedModel) -> dict[str, Any]:
        found = predicted_classes(pruned, self._evaluation, self._collator)
        labels = self._evaluation.with_format("torch")["labels"][:]
        return {
            "rows": len(labels),
            "dense_correct": int((self._dense == labels).sum()),
            "correct": int((found == labels).sum()),
            "agreed": int((found == self._dense).sum()),
        }

    def _shared(self, cell: Cell, config: FisherPruningConfig) -> SharedStatistics:
        key, shared = self._sample
        if key != cell.sample or shared is None:
            self._sample = (None, None)  # the old statistics go before the new ones come
            rows = self._rows.calibration(cell.seed, cell.examples)
            evaluation = Evaluation(data_collator=self._collator)
            shared = SharedStatistics(PruningRun.of(self._model, config, rows, evaluation, None))
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
    add_collection_argument(parser)
    add_seed_argument(parser, 3, "calibration samples")
    add_choice_arguments(
        parser,
        "task=sst2 flops=0.5,0.4 recovery=weights ablation=full,uniform seed=0",
        "settings of FisherPruningConfig for every cell, values as JSON: refit_examples=1024",
    )
    parser.add_argument(
        "--training",
        nargs="+",
        default=[],
        metavar="SETTING=VALUE",
        help="settings of the recovery training: rate=0.0002 epochs=2 (see Training in accuracy_training.py)",
    )
    parser.add_argument("--max-calibration", type=int, help="calibration examples at most, to try the script")
    parser.add_argument("--plot", type=Path, help="picture to write; default: beside --output")
    arguments = parser.parse_args(argv)

    def asked_for() -> list[Cell]:
        request = Request.of(arguments, parse_settings(arguments.training, Training()))
        return cells_of(request, arguments.seeds, parse_filters(arguments.only, FIELDS))

    return arguments, chosen_cells(parser, asked_for)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing and prints the tables."""
    arguments, cells = parse_arguments(argv)
    prepare_run(arguments)
    runs, cache = TaskRuns(arguments), cell_cache(arguments)
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
