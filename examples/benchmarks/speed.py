"""Realised speed: what a FLOPs budget brings on the clock, and whether a latency budget is kept.

1. A model pruned to half its FLOPs beside the dense one, at batch 32 × 128 tokens and 1 × 128. The speed-up is compared
   with the ideal, (dense FLOPs / pruned FLOPs) of attention and FFN at that length. Targets: at least 0.9 of the ideal
   at batch 32, at least 0.75 at batch 1.
2. A model pruned to 0.8, 0.6 and 0.5 of the dense forward time, at the same two inputs, measured afresh after pruning.
   Target: at most 1.05 times the time that was asked for.

All times are medians of forward passes of both models in turn. The repair is left out (recovery="none"): it changes
weights, not shapes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from arguments import benchmark_parser, prepare_run, write_results
from markdown_tables import markdown_table, verdict
from tasks import TASKS, TaskRows, load_model, load_tokenizer
from tqdm import tqdm
from transformers import DataCollatorWithPadding, PreTrainedModel

from hf_prune import FisherPruningConfig, count_flops, prune_model
from hf_prune.budget import compare_latency

FLOPS = 0.5
LATENCIES = (0.8, 0.6, 0.5)
# Widths as the search finds them, and rounded to what processors like.
ROUNDINGS = (1, 8)
# Least share of the ideal speed-up, by batch size.
SPEED_TARGETS = {32: 0.9, 1: 0.75}
LATENCY_TARGET = 1.05
# A single sequence takes so little time that more passes are needed, and affordable.
REPEATS_FACTOR = {32: 1, 1: 10}

_HEADERS = ("batch × tokens", "dense ms", "pruned ms", "speed-up")


@dataclass(frozen=True)
class Timing:
    """Both models' median seconds of a forward pass, and how much the pruned one should take by its FLOPs."""

    batch_size: int
    sequence_length: int
    dense_seconds: float
    pruned_seconds: float
    dense_flops: int
    pruned_flops: int

    @property
    def speedup(self) -> float:
        """How many times as fast the pruned model is."""
        return self.dense_seconds / self.pruned_seconds

    @property
    def ideal(self) -> float:
        """How many times as fast its FLOPs would make it."""
        return self.dense_flops / self.pruned_flops


class SpeedRun:
    """Prunes the task's model in different ways and times the results.

    Args:
        arguments: of the script.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._task = TASKS[arguments.task]
        self._dense = self._load()
        tokenizer = load_tokenizer(self._task, arguments.models)
        self._collator = DataCollatorWithPadding(tokenizer)
        rows = TaskRows(self._task, arguments.data, tokenizer, self._dense.config.label2id)
        self._rows = rows.calibration(seed=0, examples=arguments.examples)

    def pruned(self, config: FisherPruningConfig) -> PreTrainedModel:
        """A freshly loaded model, pruned."""
        return prune_model(self._load(), config, self._rows, data_collator=self._collator).model

    def time(self, pruned: PreTrainedModel, batch_size: int) -> Timing:
        """The dense and the pruned model, pass by pass in turn."""
        length, repeats = self._arguments.length, self._arguments.repeats * REPEATS_FACTOR[batch_size]
        models = [self._dense, pruned]
        dense, pruned_seconds = compare_latency(models, batch_size, length, repeats=repeats)
        dense_flops, pruned_flops = (count_flops(model, length) for model in models)
        return Timing(batch_size, length, dense, pruned_seconds, dense_flops, pruned_flops)

    def _load(self) -> PreTrainedModel:
        return load_model(self._task, self._arguments.models, self._arguments.device)


def flops_timings(run: SpeedRun, length: int) -> list[tuple[int, Timing]]:
    """The model with half its FLOPs, for every rounding of widths and at every input."""
    found = []
    for round_to in tqdm(ROUNDINGS, desc="FLOPs budget", unit="model"):
        config = FisherPruningConfig(flops=FLOPS, sequence_length=length, recovery="none", round_to=round_to)
        pruned = run.pruned(config)
        found += [(round_to, run.time(pruned, batch_size)) for batch_size in SPEED_TARGETS]
    return found


def latency_timings(run: SpeedRun, length: int, asked: Sequence[float]) -> list[tuple[float, Timing]]:
    """For every input and every latency budget a model of its own."""
    pairs = [(batch_size, latency) for batch_size in SPEED_TARGETS for latency in asked]
    found = []
    for batch_size, latency in tqdm(pairs, desc="Latency budget", unit="model"):
        config = FisherPruningConfig(
            latency=latency, latency_batch_size=batch_size, sequence_length=length, recovery="none"
        )
        found.append((latency, run.time(run.pruned(config), batch_size)))
    return found


def flops_table(timings: Sequence[tuple[int, Timing]]) -> str:
    """Speed-ups beside the ideal."""
    headers = [*_HEADERS, "ideal", "of ideal", "round_to", "target", "reached"]
    rows = []
    for round_to, timing in timings:
        share, target = timing.speedup / timing.ideal, SPEED_TARGETS[timing.batch_size]
        reached = [f"{share:.2f}", round_to, f"≥ {target}", verdict(share >= target)]
        rows.append([*_times(timing), f"{timing.ideal:.2f}", *reached])
    return markdown_table(headers, rows)


def latency_table(timings: Sequence[tuple[float, Timing]]) -> str:
    """Reached latencies beside those asked for."""
    headers = [*_HEADERS, "asked", "got", "got / asked", "target", "reached"]
    rows = []
    for asked, timing in timings:
        got = timing.pruned_seconds / timing.dense_seconds
        holds = verdict(got / asked <= LATENCY_TARGET)
        rows.append([*_times(timing), asked, f"{got:.3f}", f"{got / asked:.3f}", f"≤ {LATENCY_TARGET}", holds])
    return markdown_table(headers, rows)


def _times(timing: Timing) -> list[str]:
    milliseconds = [f"{1000 * seconds:.2f}" for seconds in (timing.dense_seconds, timing.pruned_seconds)]
    return [f"{timing.batch_size} × {timing.sequence_length}", *milliseconds, f"{timing.speedup:.2f}"]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--task", choices=TASKS, default="sst2", help="default: %(default)s")
    parser.add_argument("--length", type=int, default=128, help="tokens per sequence; default: %(default)s")
    parser.add_argument("--examples", type=int, default=512, help="calibration examples; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=20, help="timed passes at batch 32; default: %(default)s")
    parser.add_argument("--latency", type=float, nargs="*", default=LATENCIES, help="budgets; default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Times everything and prints both tables."""
    arguments = parse_arguments(argv)
    prepare_run(arguments)
    run = SpeedRun(arguments)
    flops = flops_timings(run, arguments.length)
    latency = latency_timings(run, arguments.length, arguments.latency)
    threads = f"{torch.get_num_threads()} threads" if arguments.device.type == "cpu" else arguments.device.type
    print(f"## {TASKS[arguments.task].model}, float32, {threads}\n")
    print(f"Pruned to {FLOPS} of the FLOPs:\n\n{flops_table(flops)}")
    if latency:
        print(f"\nPruned to a share of the dense forward time:\n\n{latency_table(latency)}")
    results = {
        "model": TASKS[arguments.task].model,
        "flops": [{"round_to": round_to, **asdict(timing)} for round_to, timing in flops],
        "latency": [{"asked": asked, **asdict(timing)} for asked, timing in latency],
    }
    write_results(arguments.output, results)


if __name__ == "__main__":
    main()
