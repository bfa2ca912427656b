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
from collections.abc import Sequence
from functools import partial
from typing import Any

from compressing_cells import FIELDS, TABLES, Cell, Settings, cells_of
from compressing_tables import StudyResults, markdown_report
from compressing_texts import write_texts
from study_models import Classifier, run_metrics
from study_rows import write_rows
from study_runs import Runner
from study_script import Drawing, Study
from tasks import TASKS

from hf_prune.report import plot_losses

TASK = TASKS["sst2"]
BASE_MODEL = "minilm-base"


def measure(cell: Cell, runner: Runner, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains what is missing, reads the model back and evaluates it."""
    run = cell.run
    classifier = Classifier(runner.finish(run), arguments.device)
    before = None if cell.table != "pre-training" or run.parent is None else run_metrics(runner.finish(run.parent))
    return {
        **classifier.measured(TASK, arguments.data, cell.request),
        "mlm_loss": None if before is None else before["eval_loss"],
    }


def make_runner(settings: Settings, arguments: argparse.Namespace) -> Runner:
    """Knows the model and the rows that the trainings read."""
    folder, base = arguments.cache / "rows", arguments.models / BASE_MODEL
    places = {
        "minilm": lambda: base,
        "sst2": partial(write_rows, folder, TASK, settings.rows, arguments.data, base),
        "wikitext2-train": partial(write_texts, folder, arguments.data, "train"),
        "wikitext2-valid": partial(write_texts, folder, arguments.data, "valid"),
    }
    return Runner.of(arguments, places)


def draw(results: StudyResults, drawing: Drawing[Settings, Runner]) -> None:
    """Draws each table that there are results for."""
    for table in TABLES:
        rows = results.study_rows(table)
        if rows:
            plot_losses(rows, drawing.folder / f"compressing_bert_{table.replace('-', '_')}.png")


STUDY = Study(
    docstring=__doc__,
    name="compressing_bert",
    seeds=1,
    only="table=pre-training,fine-tuning kind=pruned,during sparsity=0.5 seed=0",
    explained="how all models are trained, see Settings in compressing_cells.py: minilm_steps=300 minilm_rate=3e-5",
    settings=Settings(),
    fields=FIELDS,
    cells_of=cells_of,
    make_runner=make_runner,
    measure=measure,
    results_of=StudyResults,
    markdown=markdown_report,
    entries=lambda results: {"entries": [entry.to_dict() for table in TABLES for entry in results.entries(table)]},
    draw=draw,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the tables and draws the pictures."""
    STUDY.run(argv)


if __name__ == "__main__":
    main()
