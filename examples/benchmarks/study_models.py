"""What a finished training has made: its model, its accuracy, and what the script has noted."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from evaluation import predicted_classes
from study_cells import Request
from study_rows import DRAW_SEED
from study_runs import DONE
from tasks import Task, TaskRows
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, PreTrainedModel

from hf_prune.surgery.weight_metadata import count_zeros

FIT_ROWS = 2000


class Classifier:
    """A trained classifier.

    Args:
        folder: of the run.
        device: to evaluate on.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self._device = folder, device

    @cached_property
    def model(self) -> PreTrainedModel:
        """Read back as a user would."""
        return AutoModelForSequenceClassification.from_pretrained(self.folder).to(self._device).eval()

    def measured(self, task: Task, data: Path, request: Request[Any]) -> dict[str, Any]:
        """Which rows it has right, how well it fits rows that it was trained on, its zeros, loss and time."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        source = TaskRows(task, data, tokenizer, self.model.config.label2id)
        collator = DataCollatorWithPadding(tokenizer)

        def right(rows: Dataset) -> torch.Tensor:
            return predicted_classes(self.model, rows, collator) == rows.with_format("torch")["labels"][:]

        evaluated = right(source.evaluation(request.split, request.max_eval))
        fit = right(source.calibration(DRAW_SEED, min(FIT_ROWS, request.settings.rows)))
        zeros = count_zeros(self.model)
        return {
            "right": "".join(str(int(found)) for found in evaluated),
            "fit": float(fit.float().mean()),
            "zeros": zeros["removed"] / zeros["of"],
            "train_loss": run_metrics(self.folder)["train_loss"],
            "seconds": json.loads((self.folder / DONE).read_text(encoding="utf8"))["seconds"],
        }


def run_metrics(folder: Path) -> dict[str, float]:
    """What the script has measured itself."""
    return json.loads((folder / "all_results.json").read_text(encoding="utf8"))
