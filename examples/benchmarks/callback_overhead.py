"""What PruningCallback costs per training step, beside a plain Trainer.

all-MiniLM-L6-v2 with a classifier, batches of 32 × 128 tokens drawn at random, AdamW, as `Trainer` trains it: plain,
with magnitude pruning, movement pruning and static masks, in place and as an adapter. Each is trained for some steps in
turn, from the same weights, and this is repeated. A step's time is that from the end of one optimizer step to the end
of the next, so that it holds loading a batch, forward, backward, the optimizer and the callback. Masks are made anew
every 10 steps by magnitude pruning, and every step by the others, so steps are averaged over whole periods of 10, after
a first period that warms up. The ratio is the median over the rounds; in a round all were measured right after each
other. Targets: at most 1.05 times the plain step for magnitude pruning, 1.5 times where scores learn.

The steps that make masks anew are listed apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from arguments import benchmark_parser, prepare_run, write_results
from callback_variants import PERIOD, PLAIN, VARIANTS, Variant, add_batch_arguments, make_trainer
from markdown_tables import markdown_table, verdict
from tqdm import tqdm
from transformers import TrainerCallback


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


def timed_steps(variant: Variant, arguments: argparse.Namespace) -> list[float]:
    """Seconds of every step of one training."""
    clock = StepClock(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(variant, arguments, folder, PERIOD * (arguments.periods + 1), [clock]).train()
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
    for name in rounds[0]:
        variant = VARIANTS[name]
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
    add_batch_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the ratios."""
    arguments = parse_arguments(argv)
    prepare_run(arguments)
    rounds: list[dict[str, list[float]]] = []
    with tqdm(total=arguments.rounds * len(VARIANTS), desc="Trainings", unit="training") as bar:
        for index in range(arguments.rounds):
            # Every other round runs backwards, so that a machine that grows slower harms no variant.
            rounds.append({name: [] for name in VARIANTS})
            for name in list(VARIANTS)[:: -1 if index % 2 else 1]:
                rounds[-1][name] = timed_steps(VARIANTS[name], arguments)
                bar.update()
    shape = f"{arguments.batch_size} × {arguments.length} tokens"
    print(f"## all-MiniLM-L6-v2, {shape}, {arguments.rounds} rounds, {arguments.device.type}\n\n{table(rounds)}")
    found: dict[str, Any] = {name: ratios(rounds, name) for name in VARIANTS}
    write_results(arguments.output, {"shape": shape, "ratios": found, "seconds": rounds})


if __name__ == "__main__":
    main()
