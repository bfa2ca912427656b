"""What is measured of a finished training: every level's predictions, and how much its mappings put out at first."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from evaluation import predicted_classes
from snip_cells import KINDS, Cell
from snip_rows import evaluation_rows, train_rows
from study_runs import DONE, Runner
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, PreTrainedModel

from hf_prune.report import TradeOffCurve, activation_maxima

MAXIMA_ROWS = 256


def measure(cell: Cell, runner: Runner, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains what is missing, and reads the model of every level back.

    Levels are evaluated here and not while they are trained: the same training answers for dev and for held-out rows,
    and single predictions are known, as paired comparisons need.
    """
    folder = runner.finish(cell.run)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    collator, device = DataCollatorWithPadding(tokenizer), arguments.device
    rows = evaluation_rows(cell.task, arguments.data, tokenizer, cell.request.split, cell.request.max_eval)
    curve = None if KINDS[cell.kind].units is None else TradeOffCurve.load(folder)
    places = [folder] if curve is None else [folder / str(level.folder) for level in curve.levels]
    predicted = [predicted_classes(load(place, device), rows, collator) for place in places]
    maxima = []
    if KINDS[cell.kind].units == "joint":
        examples = min(MAXIMA_ROWS, cell.request.settings.rows(cell.task))
        sample = train_rows(cell.task, arguments.data, tokenizer, examples)
        maxima = measured_maxima(load(places[0], device), sample, collator)
    return {
        "labels": _digits(rows["labels"]),
        "predicted": [_digits(found.tolist()) for found in predicted],
        "curve": None if curve is None else curve.to_dict(),
        "maxima": maxima,
        "seconds": json.loads((folder / DONE).read_text(encoding="utf8"))["seconds"],
    }


def load(folder: Path, device: torch.device) -> PreTrainedModel:
    """A model, read back as a user would."""
    return AutoModelForSequenceClassification.from_pretrained(folder).to(device).eval()


def measured_maxima(model: PreTrainedModel, rows: Dataset, collator: Any) -> list[dict[str, Any]]:
    """max|F| of every head and FFN on every row, with four digits."""
    found = []
    for item in activation_maxima(model, rows, data_collator=collator):
        values = [[float(f"{value:.4g}") for value in row] for row in item.values.tolist()]
        found.append({"key": item.key, "kind": item.kind, "values": values})
    return found


def _digits(classes: list[int]) -> str:
    """One digit per row, which is enough for these tasks' classes."""
    return "".join(map(str, classes))
