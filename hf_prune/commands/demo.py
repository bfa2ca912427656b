"""`hf-prune demo`: train a small BERT on the spot, prune it, write it, and read it back in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

import hf_prune

from ..api import prune_model
from ..demo import load_docstrings, tokenize, train_classifier, train_tokenizer
from ..errors import PruningError
from ..report.result import PLOT_FILE, REPORT_FILE, PruningResult
from ..strategies.fisher import FisherPruningConfig
from .metrics import classification_accuracy
from .sources import sample

CALIBRATION_ROWS = 2048
COMPARED_ROWS = 200
# Another shape of batch changes the last bits of a sum, nothing more.
LARGEST_DIFFERENCE = 1e-4

READ_BACK = """\
import json, sys, torch
import hf_prune
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer(json.load(sys.stdin), padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    json.dump(model(**inputs).logits.tolist(), sys.stdout)
"""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Demo:
    """What came out.

    Attributes:
        result: the pruned model with its report.
        folder: its checkpoint.
        picture: the heat map of what was cut, or None without matplotlib.
        compared: rows whose predictions were compared with those of a new process.
        difference: the largest difference of their logits.
    """

    result: PruningResult
    folder: Path
    picture: Path | None
    compared: int
    difference: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return {
            "report": self.result.report.to_dict(),
            "output_dir": str(self.folder),
            "picture": None if self.picture is None else str(self.picture),
            "reloaded": {"rows": self.compared, "largest_logit_difference": self.difference},
        }


def run_demo(folder: Path, say: Say, *, flops: float = 0.5, seed: int = 0) -> Demo:
    """The whole story, without a download.

    Args:
        folder: where the checkpoint goes; an earlier demo there is replaced.
        say: receives a line before every step.
        flops: share of the attention and FFN FLOPs to keep.
        seed: of the data's split, the model's training and the choice of calibration rows.

    Raises:
        PruningError: `flops` is no share, the folder holds something else, or the checkpoint does not give the same
            predictions.
    """
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / REPORT_FILE).is_file())):
        raise PruningError(f"--output_dir {folder} exists and holds no earlier demo; name another folder.")
    pruning = FisherPruningConfig(flops=flops)
    say("1/5  Docstrings of Python's standard library, to be told apart by topic")
    dataset = load_docstrings(seed)
    train, validation = dataset["train"], dataset["validation"]
    topics = train.features["label"].names
    say(f"     {len(train):,} to learn from, {len(validation):,} to test on; topics: {', '.join(topics)}")
    say("2/5  Training a BERT of 4 layers on them")
    tokenizer = train_tokenizer(train["text"])
    model = train_classifier(dataset, tokenizer, seed)
    say(f"3/5  Pruning it to {flops:.0%} of the FLOPs of attention and FFN, without further training")
    rows = tokenize(dataset, tokenizer)
    result = prune_model(
        model,
        pruning,
        sample(rows["train"], CALIBRATION_ROWS, seed),
        data_collator=DataCollatorWithPadding(tokenizer),
        eval_dataset=rows["validation"],
        compute_metrics=classification_accuracy,
    )
    say(f"4/5  Writing the checkpoint to {folder}")
    result.save_pretrained(folder, tokenizer=tokenizer)
    picture = folder / PLOT_FILE if find_spec("matplotlib") is not None else None
    say("5/5  Reading it in a new process through AutoModelForSequenceClassification")
    compared = sample(validation, COMPARED_ROWS, seed)
    difference = compare_with_new_process(result.model, tokenizer, compared, folder)
    say(f"     same predictions for {len(compared)} texts; largest difference of a logit: {difference:.1e}")
    return Demo(result, folder, picture, len(compared), difference)


def compare_with_new_process(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, folder: Path
) -> float:
    """The largest difference between a model's logits and those of its checkpoint, read by another Python process.

    Raises:
        PruningError: the other process failed, or its logits or predictions are not the same.
    """
    texts = list(rows["text"])
    with torch.no_grad():
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        here = model(**inputs).logits.numpy()
    there = np.asarray(logits_of_new_process(folder, texts), dtype=here.dtype)
    difference = float(np.abs(here - there).max())
    if not difference <= LARGEST_DIFFERENCE or (here.argmax(-1) != there.argmax(-1)).any():
        raise PruningError(f"The checkpoint in {folder} gives other predictions: logits differ by {difference:.3g}.")
    return difference


def logits_of_new_process(folder: Path, texts: list[str]) -> list[list[float]]:
    """Runs `READ_BACK` in a new Python process: the logits of a checkpoint for some texts.

    Raises:
        PruningError: the process failed; the message holds the end of what it said.
    """
    package = str(Path(hf_prune.__file__).parents[1])
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH")) if part)
    process = subprocess.run(
        [sys.executable, "-c", READ_BACK, str(folder)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    if process.returncode:
        raise PruningError(f"Reading {folder} in a new process failed:\n{process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])
