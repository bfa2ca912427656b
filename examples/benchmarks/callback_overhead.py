"""What PruningCallback costs per training step, beside a plain Trainer.

all-MiniLM-L6-v2 with a classifier, batches of 32 × 128 tokens drawn at random, AdamW, as `Trainer` trains it: plain,
with magnitude pruning and with movement pruning. Each is trained for some steps in turn, from the same weights, and
this is repeated. A step's time is that from the end of one optimizer step to the end of the next, so that it holds
loading a batch, forward, backward, the optimizer and the callback. Masks are made anew every 10 steps by magnitude
pruning, and every step by movement pruning, so steps are averaged over whole periods of 10, after a first period that
warms up. The ratio is the median over the rounds; in a round all three were measured right after each other. Targets:
at most 1.05 times the plain step for magnitude pruning, 1.5 times for movement pruning.

The steps that make masks anew are listed apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from arguments import benchmark_parser, prepare_run, write_results
from datasets import Dataset
from markdown_tables import markdown_table, verdict
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_prune import MagnitudePruningConfig, MovementPruningConfig, PruningCallback, PruningConfig

BASE_MODEL = "minilm-base"
PERIOD = 10
PLAIN = "plain Trainer"


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        config: makes the strategy's configuration; None for no callback.
        target: the largest ratio to the plain step.
        update_every: steps between two choices of masks.
    """

    config: Callable[[], PruningConfig] | None = None
    target: float | None = None
    update_every: int | None = None


VARIANTS = {
    PLAIN: Variant(),
    "magnitude": Variant(lambda: MagnitudePruningConfig(sparsity=0.6, end=0.5, frequency=PERIOD), 1.05, PERIOD),
    "movement": Variant(lambda: MovementPruningConfig(sparsity=0.6, end=0.5), 1.5, 1),
}


class StepClock(TrainerCallback):
    """Notes when each optimizer step has ended; the first time is when training begins."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: list[float] = []

    @property
    def seconds(self) -> list[float]:
        """Of every step."""
        return [end - start for start, end in zip(self._times, self._times[1:], strict=False)]

    def on_train_begin(self, *unused: Any, **more: Any) -> None:
        self._note()

    def on_step_end(self, *unused: Any, **more: Any) -> None:
        self._note()

    def _note(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._times.append(time.perf_counter())


def random_rows(vocabulary: int, examples: int, length: int) -> Dataset:
    """Token ids and labels; every row is as long as the others."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, vocabulary, (examples, length), generator=generator)
    labels = torch.randint(2, (examples,), generator=generator)
    return Dataset.from_dict(
        {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist(), "labels": labels.tolist()}
    )


def timed_steps(variant: Variant, arguments: argparse.Namespace) -> list[float]:
    """Seconds of every step of one training."""
    model = AutoModelForSequenceClassification.from_pretrained(arguments.models / BASE_MODEL, dtype="float32")
    steps = PERIOD * (arguments.periods + 1)
    rows = random_rows(model.config.vocab_size, arguments.batch_size * steps, arguments.length)
    clock = StepClock(arguments.device)
    callbacks: list[TrainerCallback] = [clock]
    if variant.config is not None:
        callbacks.append(PruningCallback(variant.config()))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            use_cpu=arguments.device.type == "cpu",
            per_device_train_batch_size=arguments.batch_size,
            max_steps=steps,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(model, settings, train_dataset=rows, callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds


def period_means(seconds: Sequence[float]) -> list[float]:
    """Mean step of every period but the first."""
    starts = range(PERIOD, len(seconds) - PERIOD + 1, PERIOD)
    return [statistics.fmean(seconds[start : start + PERIOD]) for start in starts]


def update_steps(seconds: Sequence[float], every: int | None) -> tuple[list[float], list[float]]:
    """The steps after the first period, apart: those that make masks anew, and the others."""
    later = list(enumerate(seconds, 1))[PERIOD:]
    updating = [value for step, value in later if every is not None and step % every == 0]
    return updating, [value for step, value in later if every is None or step % every]


def ratios(rounds: Sequence[Mapping[str, Sequence[float]]], name: str) -> list[float]:
    """By round: the median period of a variant, over that of the plain Trainer."""
    medians = [[statistics.median(period_means(found[kind])) for kind in (name, PLAIN)] for found in rounds]
    return [one / plain for one, plain in medians]


def table(rounds: Sequence[Mapping[str, Sequence[float]]]) -> str:
    """Medians, ratios and targets."""
    rows = []
    for name, variant in VARIANTS.items():
        periods = [mean for found in rounds for mean in period_means(found[name])]
        parts = [update_steps(found[name], variant.update_every) for found in rounds]
        updating, others = ([value for part in parts for value in part[index]] for index in (0, 1))
        ratio = statistics.median(ratios(rounds, name))
        reached = "" if variant.target is None else verdict(ratio <= variant.target)
        rows.append(
            [
                name,
                _milliseconds(periods),
                _milliseconds(others),
                _milliseconds(updating),
                f"{ratio:.3f}",
                "" if variant.target is None else f"≤ {variant.target}",
                reached,
            ]
        )
    headers = ["", "step (ms)", "without update", "with update", "ratio", "target", "reached"]
    return markdown_table(headers, rows)


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f}" if seconds else "–"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each; default: %(default)s")
    parser.add_argument("--periods", type=int, default=2, help=f"timed periods of {PERIOD} steps; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--length", type=int, default=128, help="tokens per row; default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the ratios."""
    arguments = parse_arguments(argv)
    prepare_run(arguments)
    rounds: list[dict[str, list[float]]] = []
    with tqdm(total=arguments.rounds * len(VARIANTS), desc="Trainings", unit="training") as bar:
        for index in range(arguments.rounds):
            # Every other round runs backwards, so that a machine that grows slower harms no variant.
            order = list(VARIANTS.items())[:: -1 if index % 2 else 1]
            rounds.append({})
            for name, variant in order:
                rounds[-1][name] = timed_steps(variant, arguments)
                bar.update()
    shape = f"{arguments.batch_size} × {arguments.length} tokens"
    print(f"## all-MiniLM-L6-v2, {shape}, {arguments.rounds} rounds, {arguments.device.type}\n\n{table(rounds)}")
    found: dict[str, Any] = {name: ratios(rounds, name) for name in VARIANTS}
    write_results(arguments.output, {"shape": shape, "ratios": found, "seconds": rounds})


if __name__ == "__main__":
    main()
