"""Metrics of a model on evaluation data, by transformers' own evaluation loop."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..offloading import device_of, is_offloaded
from ..scores import evaluating


def evaluate_model(
    model: PreTrainedModel,
    eval_dataset: Any,
    compute_metrics: Callable[[Any], dict[str, float]] | None,
    data_collator: Any = None,
    batch_size: int = 32,
) -> dict[str, float]:
    """The loss, and whatever `compute_metrics` makes of an `EvalPrediction`.

    Args:
        model: a model with a task head.
        eval_dataset: tokenised rows with labels.
        compute_metrics: as for `Trainer`.
        data_collator: as for `Trainer`.
        batch_size: rows per batch.
    """
    device, offloaded = model.device, is_offloaded(model)
    with tempfile.TemporaryDirectory() as folder, evaluating(model), _untouched_randomness():
        arguments = (_InPlace if offloaded else TrainingArguments)(
            output_dir=folder,
            per_device_eval_batch_size=batch_size,
            report_to=[],
            use_cpu=device_of(model).type == "cpu",
            # A Trainer writes this into the model's config.
            use_cache=getattr(model.config, "use_cache", False),
            disable_tqdm=None,
        )
        trainer = Trainer(model, arguments, data_collator=data_collator, compute_metrics=compute_metrics)
        if offloaded:
            trainer.accelerator.device_placement = False
        measured = trainer.evaluate(eval_dataset)
    if model.device != device:
        model.to(device)
    timing = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    bookkeeping = {f"eval_{name}" for name in timing} | {"epoch"}
    return {
        name.removeprefix("eval_"): float(value)
        for name, value in measured.items()
        if name not in bookkeeping and isinstance(value, (int, float))
    }


class _InPlace(TrainingArguments):
    """A `Trainer` leaves the model where it is, which moves its weights itself."""

    @property
    def place_model_on_device(self) -> bool:
        return False


@contextmanager
def _untouched_randomness() -> Iterator[None]:
    """A Trainer seeds every generator when it is made; the caller's states come back."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
