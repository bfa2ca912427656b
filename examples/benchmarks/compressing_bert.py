"""The experiments of "Compressing BERT" (Gordon et al. 2020) on a small scale, by the example scripts.

Table 1, the paper's main experiment: a small BERT (4 layers, hidden size 256, a vocabulary of its own) is pre-trained
on WikiText-2 at a constant rate. From there every model goes on for the same number of steps at a falling rate, in the
first half of which it is gradually pruned to 0, 30, 50, 70 or 90 %, and is then fine-tuned on SST-2 with its zeros
held ("pruned"). "deleted" is the same pruned model whose zeros are free in fine-tuning, "random" has lost weights by
lot. The loss is that of WikiText-2's validation part, always with the same tokens masked. The pooler is made for
fine-tuning, so it is not pruned.

Table 2: all-MiniLM-L6-v2 on SST-2, pruned gradually in the first half of its fine-tuning ("during", "random"), or at
one go after it and then trained on ("after", "random after"; level 0 is trained on as well).

All cells of a table have the same 8,000 train rows and number of steps. Every training is a process of its own whose
folder is kept, and every cell is kept as soon as it is measured: a run that was interrupted goes on where it stopped.
Choose settings with --set and --held-out, which evaluates on train rows that no model sees, and look at dev once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import benchmark_parser, prepare_run, write_results
from cells import CellCache, default_cache
from compressing_cells import TABLES, Cell, Request, cells_of, parse_filters, parse_settings
from compressing_rows import DRAW_SEED, write_rows, write_texts
from compressing_runs import DONE, RunFailed, Runner
from compressing_tables import StudyResults, markdown_report
from datasets import Dataset
from evaluation import predicted_classes
from tasks import TASKS, TaskRows
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, PreTrainedModel

from hf_prune.anatomy.matrices import choose_matrices
from hf_prune.report import plot_losses

TASK = TASKS["sst2"]
BASE_MODEL = "minilm-base"
FIT_ROWS = 2000


def measure(cell: Cell, runner: Runner, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains what is missing, reads the model back and evaluates it."""
    run = cell.run
    folder = runner.finish(run)
    model = AutoModelForSequenceClassification.from_pretrained(folder).to(arguments.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = TaskRows(TASK, arguments.data, tokenizer, model.config.label2id)
    collator = DataCollatorWithPadding(tokenizer)

    def right(rows: Dataset) -> torch.Tensor:
        return predicted_classes(model, rows, collator) == rows.with_format("torch")["labels"][:]

    evaluated = right(source.evaluation(cell.request.split, cell.request.max_eval))
    fit = right(source.calibration(DRAW_SEED, min(FIT_ROWS, cell.request.settings.rows)))
    return {
        "right": "".join(str(int(found)) for found in evaluated),
        "fit": float(fit.float().mean()),
        "zeros": zero_share(model),
        "mlm_loss": None if cell.table != "pre-training" else _metrics(runner.finish(run.parent))["eval_loss"],
        "train_loss": _metrics(folder)["train_loss"],
        "seconds": json.loads((folder / DONE).read_text(encoding="utf8"))["seconds"],
    }


def zero_share(model: PreTrainedModel) -> float:
    """The share of zeros in the matrices that are pruned by default."""
    matrices = [matrix.parameter for matrix in choose_matrices(model, lambda names, default: set(default))]
    return 1 - sum(int(matrix.count_nonzero()) for matrix in matrices) / sum(matrix.numel() for matrix in matrices)


def _metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "all_results.json").read_text(encoding="utf8"))


def measure_cells(cells: Sequence[Cell], arguments: argparse.Namespace) -> list[tuple[Cell, dict[str, Any]]]:
    """What was measured for each cell, now or earlier; a failure is reported and its cell left out."""
    cache = CellCache(arguments.cache)
    missing = [cell for cell in cells if cache.read(cell.name, cell.settings()) is None]
    if missing and not arguments.finished:
        runner = make_runner(missing[0].request, arguments)
        for cell in (bar := tqdm(missing, desc="Cells", unit="cell")):
            bar.set_postfix_str(f"{cell.table} {cell.kind} {cell.sparsity}")
            try:
                cache.write(cell.name, cell.settings(), measure(cell, runner, arguments))
            except RunFailed as error:
                tqdm.write(f"{cell.name} failed: {error}", file=sys.stderr)
    found = ((cell, cache.read(cell.name, cell.settings())) for cell in cells)
    return [(cell, values) for cell, values in found if values is not None]


def make_runner(request: Request, arguments: argparse.Namespace) -> Runner:
    """Writes the files that the trainings read."""
    folder = arguments.cache / "rows"
    base = arguments.models / BASE_MODEL
    source = TaskRows(TASK, arguments.data, AutoTokenizer.from_pretrained(base), {})
    places = {"minilm": base, "sst2": write_rows(folder, source, request.settings.rows)}
    places |= {f"wikitext2-{part}": path for part, path in write_texts(folder, arguments.data).items()}
    extra = ("--use_cpu",) if arguments.device.type == "cpu" else ()
    return Runner(arguments.cache / "runs", places, extra, arguments.threads)


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[Cell]]:
    """The options, and the cells that they ask for."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache("compressing_bert"), help="default: %(default)s")
    parser.add_argument("--tag", default="", help="part of every cell's key: the state of the code that is measured")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of every cell; default: %(default)s")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="FIELD=VALUES",
        help="cells to measure: table=pre-training,fine-tuning kind=pruned,during sparsity=0.5 seed=0",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="SETTING=VALUE",
        help="how all models are trained, see Settings in compressing_cells.py: minilm_steps=300 minilm_rate=3e-5",
    )
    parser.add_argument("--held-out", action="store_true", help="evaluate on held-out train rows instead of dev")
    parser.add_argument("--finished", action="store_true", help="measure nothing, show the cells that are finished")
    parser.add_argument("--max-eval", type=int, help="evaluation rows, to try the script")
    parser.add_argument("--plots", type=Path, help="folder for the pictures; default: that of --output")
    arguments = parser.parse_args(argv)
    try:
        split = "held_out" if arguments.held_out else "dev"
        request = Request(split, arguments.max_eval, parse_settings(arguments.set), arguments.tag)
        cells = list(cells_of(request, arguments.seeds, parse_filters(arguments.only)))
    except ValueError as error:
        parser.error(str(error))
    return arguments, cells


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the tables and draws them."""
    arguments, cells = parse_arguments(argv)
    prepare_run(arguments)
    measured = measure_cells(cells, arguments)
    if not measured:
        sys.exit("No cells: nothing passes the filters, everything failed, or (with --finished) nothing was measured.")
    results = StudyResults(measured)
    print(markdown_report(results, cells[0].request.split))
    entries = [entry.to_dict() for table in TABLES for entry in results.entries(table)]
    raw = [{"cell": cell.name, **cell.settings(), "measured": values} for cell, values in measured]
    write_results(arguments.output, {"entries": entries, "cells": raw})
    folder = arguments.plots or (arguments.output.parent if arguments.output else None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for table in TABLES:
            rows = results.study_rows(table)
            if rows:
                plot_losses(rows, folder / f"compressing_bert_{table.replace('-', '_')}.png")


if __name__ == "__main__":
    main()
