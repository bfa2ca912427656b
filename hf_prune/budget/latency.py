"""Measured latency: medians of forward passes, of whole models side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from transformers import PreTrainedModel

from ..anatomy import UndoLog
from ..anatomy.example_inputs import example_batch
from ..calibration import Batch
from ..errors import PruningError
from ..scores import evaluating
from .positions import check_length

WARM_UP = 1


def measure_latency(
    model: PreTrainedModel, batch_size: int = 1, sequence_length: int = 128, *, repeats: int = 10
) -> float:
    """Median seconds of one forward pass on random inputs, without labels, on the model's device.

    Args:
        model: a supported model, dense or pruned.
        batch_size: examples in the batch.
        sequence_length: tokens of a text, without padding; images and sound have the size that the config gives.
        repeats: timed passes, after a warm-up.
    """
    return compare_latency([model], batch_size, sequence_length, repeats=repeats)[0]


def compare_latency(
    models: Sequence[PreTrainedModel], batch_size: int = 1, sequence_length: int = 128, *, repeats: int = 10
) -> list[float]:
    """Median seconds of a forward pass of each model, taken in turn so that drifts of the machine's speed cancel."""
    if batch_size < 1 or sequence_length < 1 or repeats < 1:
        raise PruningError(
            f"batch_size={batch_size}, sequence_length={sequence_length} and repeats={repeats} must all be at least 1."
        )
    passes = [forward_pass(model, random_batch(model, batch_size, sequence_length)) for model in models]
    with ExitStack() as modes:
        for model in models:
            modes.enter_context(evaluating(model))
        return time_in_turn(passes, repeats, models[0].device)


def compare_with_undone(
    model: PreTrainedModel, log: UndoLog, batch_size: int, sequence_length: int, *, repeats: int
) -> tuple[float, float]:
    """Median seconds of a forward pass without and with the changes that `log` remembers, taken in turn.

    The changes are in place before and after.
    """
    run = forward_pass(model, random_batch(model, batch_size, sequence_length))
    # The log is swapped before every pass, so the first of the two is the model as it was.
    with evaluating(model):
        before, after = time_in_turn([run, run], repeats, model.device, prepare=log.swap)
    return before, after


def forward_pass(model: PreTrainedModel, batch: Batch) -> Callable[[], None]:
    """One inference pass as a function of nothing; the model must be in evaluation mode."""

    def run() -> None:
        with torch.inference_mode():
            model(**batch)

    return run


def random_batch(model: PreTrainedModel, batch_size: int, sequence_length: int) -> Batch:
    """Random inputs without padding, the same ones every time.

    Args:
        model: any supported model.
        batch_size: examples.
        sequence_length: tokens of a text; images and sound have the size that the config gives.

    Raises:
        PruningError: a text is longer than the model's positions, or no inputs can be made for the model.
    """
    check_length(model, sequence_length)
    return example_batch(model, batch_size, sequence_length)


def time_in_turn(
    passes: Sequence[Callable[[], None]],
    repeats: int,
    device: torch.device,
    prepare: Callable[[], None] = lambda: None,
) -> list[float]:
    """Median seconds of each function, called in turn `repeats` times after a warm-up.

    Args:
        passes: what to time.
        repeats: timed calls of each.
        device: where they run; it is waited for.
        prepare: called before every call, outside the timing.
    """
    samples: list[list[float]] = [[] for _ in passes]
    for _ in range(WARM_UP + repeats):
        for run, store in zip(passes, samples, strict=True):
            prepare()
            store.append(_seconds(run, device))
    return [statistics.median(store[WARM_UP:]) for store in samples]


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """Wall time of one call; accelerators work on their own time, so theirs is waited for."""
    _wait_for(device)
    start = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
