"""Predictions of a classifier, in batches of rows of similar length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel

BATCH_SIZE = 64


def predicted_classes(model: PreTrainedModel, rows: Dataset, collator: Callable[[Any], Any]) -> torch.Tensor:
    """The most likely class of every row, `[rows]`, in the order of the rows."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    found = torch.empty(len(rows), dtype=torch.long)
    inputs = rows.remove_columns("labels")
    starts = range(0, len(order), BATCH_SIZE)
    with torch.inference_mode():
        for start in tqdm(starts, desc="Evaluate", unit="batch", leave=False, disable=None):
            index = order[start : start + BATCH_SIZE]
            batch = {name: value.to(model.device) for name, value in collator([inputs[row] for row in index]).items()}
            found[index] = model(**batch).logits.argmax(-1).cpu()
    return found
