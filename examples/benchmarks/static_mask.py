"""Static Model Pruning (Jiang et al. 2023) beside movement and magnitude pruning and full fine-tuning.

all-MiniLM-L6-v2 on SST-2 and QNLI, in float32. A static mask leaves the weights as they are and trains none but the
mask's scores; classes are told apart by the frozen embeddings of label words. Movement and magnitude pruning train the
weights, too, and a new head, as full fine-tuning does. A teacher is the fully fine-tuned model of the same seed. All
models of a task have the same 8,000 train rows and the same number of steps. The paper's claims are judged by the
differences on the same rows.

The pictures show which share of the weights remains in every layer, kind of matrix and head, for local and score
masking at 10 % (the paper's Figures 2 and 3).

Every training is a process of its own whose folder is kept, and every cell is kept as soon as it is measured: a run
that was interrupted goes on where it stopped. Choose settings with --set and --held-out, which evaluates on train rows
that no model sees, and look at dev once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from static_mask_cells import FIELDS, TABLES, Cell, Settings, cells_of
from static_mask_plots import draw_pictures
from static_mask_tables import StudyResults, markdown_report
from study_models import Classifier
from study_rows import write_rows
from study_runs import Runner
from study_script import Study
from tasks import TASKS

from hf_prune.anatomy import matrix_name
from hf_prune.report import matrix_sparsity, sparsity_per_head

BASE_MODEL = "minilm-base"


def measure(cell: Cell, runner: Runner, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains what is missing, reads the model back, evaluates it and counts what remains where."""
    classifier = Classifier(runner.finish(cell.run), arguments.device)
    rows = [row for row in matrix_sparsity(classifier.model) if matrix_name(row.name).layer]
    heads = sparsity_per_head(classifier.model)
    return {
        **classifier.measured(TASKS[cell.task], arguments.data, cell.request),
        "matrices": {row.name: (row.weights - row.removed, row.weights) for row in rows},
        "heads": {block: shares.tolist() for block, shares in heads.items()},
    }


def make_runner(settings: Settings, arguments: argparse.Namespace) -> Runner:
    """Knows the model and the rows that the trainings read."""
    folder, base = arguments.cache / "rows", arguments.models / BASE_MODEL
    rows = {task: partial(write_rows, folder, TASKS[task], settings.rows, arguments.data, base) for task in TABLES}
    return Runner.of(arguments, {"minilm": lambda: base, **rows})


STUDY = Study(
    docstring=__doc__,
    name="static_mask",
    seeds=2,
    only="task=sst2,qnli kind=local,score,movement remaining=0.1 seed=0",
    explained="how all models are trained, see Settings in static_mask_cells.py: steps=300 regularization=100",
    settings=Settings(),
    fields=FIELDS,
    cells_of=cells_of,
    make_runner=make_runner,
    measure=measure,
    results_of=StudyResults,
    markdown=markdown_report,
    entries=lambda results: {"entries": [entry.to_dict() for task in TABLES for entry in results.entries(task)]},
    draw=lambda results, drawing: draw_pictures(results, drawing.folder),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the tables and draws the pictures."""
    STUDY.run(argv)


if __name__ == "__main__":
    main()
