"""SNIP (Lin et al. 2020): all-MiniLM-L6-v2 loses heads and FFNs while it is fine-tuned on SST-2 and MRPC, in float32.

A model that is fine-tuned in full loses heads and FFNs in iterations, each of which closes what puts out least, removes
it and retrains: one training is one whole curve. Every size on the way is kept as an ordinary checkpoint, read back and
evaluated. On SST-2 heads and FFNs go together, with and without spectral normalisation, until 25 % of the attention and
FFN parameters are left, and each of them alone until half of its own are. On MRPC they go together, with spectral
normalisation. An iteration on SST-2 has 4,000 rows that no other one has; on MRPC it is a pass over all 3,200 rows.

The tables have the size and the score of every level, the simplest model within a point (the paper's Table 2) and how
large the mappings' outputs are; the pictures are the curves (Figure 3), maps of what is left in which layer (Figure 4)
and the distribution of max|F| before anything is removed (Figure 2).

Every training is a process of its own whose folder is kept, and every cell is kept as soon as it is measured: a run
that was interrupted goes on where it stopped. Choose settings with --set and --held-out, which evaluates on train rows
that no model sees, and look at dev once; both are answered by the same trainings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from snip_cells import FIELDS, TABLES, Settings, cells_of
from snip_levels import measure
from snip_plots import draw_pictures
from snip_results import StudyResults
from snip_rows import write_train_rows
from snip_tables import markdown_report
from study_runs import Runner
from study_script import Study

BASE_MODEL = "minilm-base"


def make_runner(settings: Settings, arguments: argparse.Namespace) -> Runner:
    """Knows the model and the rows that the trainings read."""
    folder, base = arguments.cache / "rows", arguments.models / BASE_MODEL
    rows = {task: partial(write_train_rows, folder, task, settings.rows(task), arguments.data, base) for task in TABLES}
    return Runner.of(arguments, {"minilm": lambda: base, **rows})


STUDY = Study(
    docstring=__doc__,
    name="snip",
    seeds=1,
    only="task=sst2,mrpc kind=dense,joint,joint-normalised,heads,feed_forward seed=0",
    explained="how all models are trained, see Settings in snip_cells.py: k=4 spectral_bound=8 mrpc_steps=300",
    settings=Settings(),
    fields=FIELDS,
    cells_of=cells_of,
    make_runner=make_runner,
    measure=measure,
    results_of=StudyResults,
    markdown=markdown_report,
    entries=lambda results: {"curves": [curve.to_dict() for task in results.tasks for curve in results.curves(task)]},
    draw=lambda results, drawing: draw_pictures(results, drawing.folder),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the tables and draws the pictures."""
    STUDY.run(argv)


if __name__ == "__main__":
    main()
