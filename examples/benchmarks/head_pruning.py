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

from head_pruning_cells import FIELDS, SINGLE_SHOT, Cell, Settings, cells_of
from head_pruning_plots import plot_attention, plot_shares
from head_pruning_runs import BASE_MODEL, HeadRunner, make_runner, pruner_summary
from head_pruning_tables import StudyResults, markdown_report
from head_pruning_tasks import MOST_HELD_OUT, STS, TASKS, HeadRows, rows_right
from study_models import Classifier
from study_script import Drawing, Study
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


def entries(results: StudyResults) -> dict[str, Any]:
    """The pruner, the accuracies and the correlations."""
    found = [entry.to_dict() for task in TASKS for entry in results.entries(task)]
    return {"pruner": results.pruner, "entries": found + [entry.to_dict() for entry in results.similarities()]}


def draw(results: StudyResults, drawing: Drawing[Settings, HeadRunner]) -> None:
    """Draws the curves, and the attention maps where a pruner has been used."""
    plot_shares(results, drawing.folder / "head_pruning.png")
    if results.pruner is not None:
        example = HeadRows(TASKS["qnli"], drawing.arguments.data).dev[0]
        base, pruner = drawing.arguments.models / BASE_MODEL, drawing.runner.pruner(drawing.settings)
        plot_attention(pruner, base, example, drawing.folder / "head_pruning_attention.png")


STUDY = Study(
    docstring=__doc__,
    name="head_pruning",
    seeds=3,
    only="task=sst2,mrpc,qnli,stsb kind=single-shot,random heads=0.5 seed=0",
    explained="how everything is trained, see Settings in head_pruning_cells.py: episodes=400 rate=3e-5",
    settings=Settings(),
    fields=FIELDS,
    cells_of=cells_of,
    make_runner=make_runner,
    measure=measure,
    results_of=StudyResults,
    markdown=markdown_report,
    entries=entries,
    draw=draw,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the tables and draws the pictures."""
    STUDY.run(argv)


if __name__ == "__main__":
    main()
