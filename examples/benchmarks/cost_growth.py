"""How the cost of pruning grows with the model and with the data.

Random BERT encoders (hidden size 128, 4 heads) are pruned in four sizes of one thing after the other. With the number
of layers and the number of calibration examples the whole of `prune_model` is measured (default settings, half the
FLOPs, every example in the repair, too); with the number of filters and of tokens the sums that the repair of one FFN
takes (its Gram matrix and what comes with it). Seconds are processor time of this process, which a busy machine
stretches less than wall time; use --threads 1. Each is the median over some rounds, after a warm-up. The exponent is
fitted by least squares in logarithms. Target: at most 1 in layers, examples and tokens and 2 in filters, with 0.1 for
what measurements scatter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from arguments import benchmark_parser, prepare_run, write_results
from markdown_tables import markdown_table, verdict
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from hf_prune import FisherPruningConfig, describe_model, prune_model
from hf_prune.calibration import CalibrationData
from hf_prune.recovery import NormalEquations, reconstruct
from hf_prune.report.figures import COLOURS, finish, label_lines, new_figure

HIDDEN, HEADS, VOCABULARY = 128, 4, 512
LENGTH, BATCH = 64, 32
SLACK = 0.1


def encoder(layers: int, filters: int = 4 * HIDDEN) -> PreTrainedModel:
    """A classifier whose weights are large enough for every head and filter to matter."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            intermediate_size=filters,
            max_position_embeddings=LENGTH,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def random_batches(examples: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens without padding, with labels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (examples, LENGTH), generator=generator)
    labels = torch.randint(2, (examples,), generator=generator)
    return [
        {"input_ids": some, "attention_mask": torch.ones_like(some), "labels": wanted}
        for some, wanted in zip(ids.split(BATCH), labels.split(BATCH), strict=True)
    ]


def whole_call(layers: int, examples: int) -> float:
    """Seconds of `prune_model`."""
    model, data = encoder(layers), random_batches(examples)
    config = FisherPruningConfig(flops=0.5, refit_examples=None, latency_batch_size=1)
    start = time.process_time()
    prune_model(model, config, data)
    return time.process_time() - start


def sums_of_squares(filters: int, tokens: int) -> float:
    """Seconds of the sums that the repair of one FFN with all of its filters takes."""
    # Of the last layer a classifier reads one token of each example, so the first of two is looked at.
    model, batches = encoder(2, filters), random_batches(tokens // LENGTH)
    anatomy = describe_model(model)
    block = anatomy.feed_forwards[0]
    with timed_sums() as seconds:
        reconstruct(
            model,
            anatomy,
            {block.key: range(filters)},
            CalibrationData(batches, model),
            batches,
            solve=lambda problem: None,  # only the sums are of interest
        )
    return sum(seconds)


@contextmanager
def timed_sums() -> Iterator[list[float]]:
    """The seconds of every addition to normal equations."""
    seconds: list[float] = []
    add = NormalEquations.add_extended

    def timed(*given: Any) -> None:
        start = time.process_time()
        add(*given)
        seconds.append(time.process_time() - start)

    with mock.patch.object(NormalEquations, "add_extended", timed):
        yield seconds


@dataclass(frozen=True)
class Growth:
    """What grows, and what is measured meanwhile.

    Attributes:
        name: what grows.
        of: what is measured.
        sizes: from the smallest to the largest.
        measure: the seconds at a size.
        most: the exponent that is expected.
    """

    name: str
    of: str
    sizes: tuple[int, ...]
    measure: Callable[[int], float]
    most: int = 1


GROWTHS = (
    Growth("layers", "prune_model, 64 examples", (3, 6, 12, 24), lambda layers: whole_call(layers, 64)),
    Growth("examples", "prune_model, 3 layers", (64, 128, 256, 512), lambda examples: whole_call(3, examples)),
    Growth("filters", "sums, 2,048 tokens", (512, 1024, 2048, 4096), lambda filters: sums_of_squares(filters, 2048), 2),
    Growth("tokens", "sums, 1,024 filters", (2048, 4096, 8192, 16384), lambda tokens: sums_of_squares(1024, tokens)),
)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Of the power of the size that fits best, by least squares in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measured(growth: Growth, rounds: int) -> dict[str, Any]:
    """Median seconds at every size, measured in turn, and the exponent."""
    growth.measure(growth.sizes[0])
    found: list[list[float]] = [[] for _ in growth.sizes]
    for _ in range(rounds):
        for size, seconds in zip(growth.sizes, found, strict=True):
            seconds.append(growth.measure(size))
    medians = [statistics.median(seconds) for seconds in found]
    return {"sizes": growth.sizes, "seconds": found, "medians": medians, "exponent": exponent(growth.sizes, medians)}


def growth_table(found: dict[str, dict[str, Any]]) -> str:
    """A row for each thing that grows."""
    rows = []
    for growth in GROWTHS:
        one = found[growth.name]
        sizes = ", ".join(f"{size:,}" for size in growth.sizes)
        seconds = ", ".join(f"{value:.3g}" for value in one["medians"])
        holds = verdict(one["exponent"] <= growth.most + SLACK)
        name = f"{growth.name} ({growth.of})"
        rows.append([name, sizes, seconds, f"{one['exponent']:.2f}", f"≤ {growth.most}", holds])
    return markdown_table(["what grows", "sizes", "seconds", "exponent", "target", "reached"], rows)


def plot_growth(found: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel for each thing that grows, with the line of the expected exponent through the largest size."""
    figure = new_figure(3.2 * len(GROWTHS), 3.2)
    for axes, growth in zip(figure.subplots(1, len(GROWTHS), squeeze=False)[0], GROWTHS, strict=True):
        one = found[growth.name]
        line = [one["medians"][-1] * (size / growth.sizes[-1]) ** growth.most for size in growth.sizes]
        axes.loglog(growth.sizes, line, color=COLOURS[1], linestyle="--", label=f"exponent {growth.most}")
        axes.loglog(growth.sizes, one["medians"], color=COLOURS[0], marker="o", label=f"{one['exponent']:.2f}")
        axes.minorticks_off()
        axes.set_xticks(growth.sizes, [f"{size:,}" for size in growth.sizes])
        axes.set_title(growth.of, fontsize=9)
        axes.legend(frameon=False, fontsize=8)
        label_lines(axes, growth.name, "processor seconds")
    finish(figure, "What pruning costs as things grow", path)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser(__doc__, needs_files=False)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each size; default: %(default)s")
    parser.add_argument("--plot", type=Path, help="picture to write; default: beside --output")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Measures one growth after the other, prints the table and draws the picture."""
    arguments = parse_arguments(argv)
    prepare_run(arguments)
    bar = tqdm(GROWTHS, desc="Measure", unit="growth", disable=None)
    found = {growth.name: measured(growth, arguments.rounds) for growth in bar}
    print(growth_table(found))
    write_results(arguments.output, {"growths": found})
    picture = arguments.plot or (arguments.output.with_suffix(".png") if arguments.output else None)
    if picture is not None:
        plot_growth(found, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
