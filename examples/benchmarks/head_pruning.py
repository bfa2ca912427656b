"""Heads pruned before fine-tuning by a single-shot meta-pruner (Zhang et al. 2020), beside what papers compare with.

all-MiniLM-L6-v2, in float32. A meta-pruner is trained once, without labels, on texts of SST-2, TREC, STS-B and MRPC;
QNLI it never sees. Then the model is fine-tuned on 4,000 rows of SST-2, MRPC (what it has) and QNLI, with half of its
heads removed before: those that the pruner scores lowest, or heads at random. HISP removes heads from the fine-tuned
model by head importance, HISP-retrain fine-tunes it a second time, and L0 closes gates while the model is fine-tuned.
On QNLI also a quarter and three quarters of the heads go. Times are those of all fine-tunings that a model has gone
through, on whatever else the machine was doing; memory is the highest peak of their processes. Without any fine-tuning,
STS-B says how well the similarities of sentence vectors agree with people's.

The pictures show accuracy and correlation by the share of heads, and attention maps of one example with their scores.

Every training is a process of its own whose folder is kept, and every cell is kept as soon as it is measured: a run
that was interrupted goes on where it stopped. Where half of the heads go all seeds are trained; `--only seed=0`, then
`--only kind=random`, then `--finished` is the shorter way. Choose settings with --set and --held-out, which evaluates
on train rows that no fine-tuning sees, and look at dev once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arguments import prepare_run, write_results
from head_pruning_cells import FIELDS, SINGLE_SHOT, Cell, Settings, cells_of
from head_pruning_plots import plot_attention, plot_shares
from head_pruning_runs import BASE_MODEL, HeadRunner, make_runner, pruner_summary
from head_pruning_tables import StudyResults, markdown_report
from head_pruning_tasks import MOST_HELD_OUT, STS, TASKS, HeadRows, rows_right
from study_cells import Request
from study_models import Classifier
from study_script import measure_study, parse_study, plots_folder, raw_cells, study_parser
from tasks import read_rows
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from hf_prune import describe_model
from hf_prune.report import sts_correlation


def measure(cell: Cell, runner: HeadRunner, arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes what is missing, reads the model back and evaluates it."""
    folder = runner.finish(cell.run)
    found = _similarity(cell, folder, arguments) if cell.task == STS.name else _accuracy(cell, folder, arguments)
    if cell.task != STS.name:
        found |= runner.cost(cell.run)
    if cell.kind == SINGLE_SHOT:
        found["pruner"] = pruner_summary(runner.pruner(cell.request.settings))
    return found


def _accuracy(cell: Cell, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Which rows a classifier has right."""
    model, request = Classifier(folder, arguments.device).model, cell.request
    source = HeadRows(TASKS[cell.task], arguments.data)
    rows = source.dev if request.split == "dev" else source.held_out
    right = rows_right(model, AutoTokenizer.from_pretrained(folder), source.task, rows[: request.max_eval])
    return {"kept": kept_heads(model), "right": "".join(str(int(each)) for each in right)}


def _similarity(cell: Cell, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """How well an encoder's similarities agree with people's."""
    model = AutoModel.from_pretrained(folder).to(arguments.device)
    rows = read_rows(arguments.data / STS.name / ("dev.tsv" if cell.request.split == "dev" else "train.tsv"))
    rows = rows[: cell.request.max_eval or MOST_HELD_OUT]
    columns = ([row[column] for row in rows] for column in ("sentence1", "sentence2", "score"))
    found = sts_correlation(model, AutoTokenizer.from_pretrained(folder), *columns)
    return {"kept": kept_heads(model), **vars(found)}


def kept_heads(model: PreTrainedModel) -> float:
    """The share of the heads that a model still has."""
    heads = sum(block.units for block in describe_model(model).attentions)
    return heads / (model.config.num_hidden_layers * model.config.num_attention_heads)


def draw_pictures(
    results: StudyResults, runner: HeadRunner, request: Request[Settings], arguments: argparse.Namespace, folder: Path
) -> None:
    """Writes the curves, and the attention maps where a pruner has been used."""
    plot_shares(results, folder / "head_pruning.png")
    if results.pruner is not None:
        example = HeadRows(TASKS["qnli"], arguments.data).dev[0]
        base = arguments.models / BASE_MODEL
        plot_attention(runner.pruner(request.settings), base, example, folder / "head_pruning_attention.png")


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Request[Settings], list[Cell]]:
    """The options, and the cells that they ask for."""
    parser = study_parser(
        __doc__,
        "head_pruning",
        seeds=3,
        only="task=sst2,mrpc,qnli,stsb kind=single-shot,random heads=0.5 seed=0",
        settings="how everything is trained, see Settings in head_pruning_cells.py: episodes=400 rate=3e-5",
    )
    return parse_study(parser, argv, Settings(), FIELDS, cells_of)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the tables and draws the pictures."""
    arguments, request, cells = parse_arguments(argv)
    prepare_run(arguments)
    runner = make_runner(request.settings, arguments)
    measured = measure_study(cells, arguments, lambda cell: measure(cell, runner, arguments))
    results = StudyResults(measured)
    print(markdown_report(results, request.split))
    entries = [entry.to_dict() for task in TASKS for entry in results.entries(task)]
    entries += [entry.to_dict() for entry in results.similarities()]
    write_results(arguments.output, {"pruner": results.pruner, "entries": entries, "cells": raw_cells(measured)})
    folder = plots_folder(arguments)
    if folder is not None:
        draw_pictures(results, runner, request, arguments, folder)


if __name__ == "__main__":
    main()
