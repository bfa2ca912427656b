"""Peak memory of pruning, beside that of training.

One call of `prune_model` (default settings, half the FLOPs, batches of 32) beside one training step (forward, backward,
AdamW) on the 32 longest rows of the same calibration sample, the largest batch that an epoch can meet. Each runs in a
process of its own; what the model and the data take before is not counted. Target: at most 1.3 times the step. Two
steps in a row, of which the second finds the optimizer's state in place, are shown beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from arguments import benchmark_parser, prepare_run, write_results
from datasets import Dataset
from markdown_tables import markdown_table, verdict
from peak_memory import measured_apart, peak_memory
from tasks import TASKS, TaskRows, load_model, load_tokenizer
from tqdm import tqdm
from transformers import DataCollatorWithPadding, PreTrainedModel

from hf_prune import FisherPruningConfig, prune_model

FLOPS = 0.5
BATCH_SIZE = 32
TARGET = 1.3
LEARNING_RATE = 1e-5
TRAIN, TRAIN_TWICE, PRUNE = "train", "train-twice", "prune"
TITLES = {TRAIN: "one training step", TRAIN_TWICE: "two training steps", PRUNE: f"prune_model, flops={FLOPS}"}


def peak_of_pruning(model: PreTrainedModel, rows: Dataset, collator: Any) -> int:
    """Bytes at the peak of one call."""
    with peak_memory(model.device) as peak:
        prune_model(model, FisherPruningConfig(flops=FLOPS, batch_size=BATCH_SIZE), rows, data_collator=collator)
    return peak.bytes


def peak_of_training(model: PreTrainedModel, rows: Dataset, collator: Any, steps: int) -> int:
    """Bytes at the peak of some training steps on the longest rows."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    longest = sorted(range(len(rows)), key=lengths.__getitem__)[-BATCH_SIZE:]
    batch = {name: value.to(model.device) for name, value in collator([rows[index] for index in longest]).items()}
    model.train()
    with peak_memory(model.device) as peak:
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        for _ in range(steps):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return peak.bytes


def measure_here(what: str, arguments: argparse.Namespace) -> int:
    """One measurement in this process."""
    task = TASKS[arguments.task]
    tokenizer = load_tokenizer(task, arguments.models)
    collator = DataCollatorWithPadding(tokenizer)
    model = load_model(task, arguments.models, arguments.device)
    rows = TaskRows(task, arguments.data, tokenizer, model.config.label2id).calibration(0, arguments.examples)
    if what == PRUNE:
        return peak_of_pruning(model, rows, collator)
    return peak_of_training(model, rows, collator, steps=1 if what == TRAIN else 2)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--task", choices=TASKS, default="sst2", help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=2048, help="calibration examples; default: %(default)s")
    parser.add_argument("--measure", choices=TITLES, help="measure only this, in this process, and print the bytes")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Starts the measurements one after the other and prints the ratios."""
    arguments = parse_arguments(argv)
    prepare_run(arguments)
    if arguments.measure:
        print(measure_here(arguments.measure, arguments))
        return
    peaks = {what: measured_apart(__file__, argv, what) for what in tqdm(TITLES, desc="Measure", unit="process")}
    ratio = peaks[PRUNE] / peaks[TRAIN]
    rows = [
        [title, f"{peaks[what] / 2**20:,.0f}", f"{peaks[what] / peaks[TRAIN]:.2f}"] for what, title in TITLES.items()
    ]
    print(f"## {TASKS[arguments.task].model}, {arguments.examples:,} examples, {arguments.device.type}\n")
    print(markdown_table(["", "peak MiB", "ratio"], rows))
    print(f"\nTarget: pruning at most {TARGET} times one step. Reached: {verdict(ratio <= TARGET)}.")
    write_results(arguments.output, {"model": TASKS[arguments.task].model, "peak_bytes": peaks, "ratio": ratio})


if __name__ == "__main__":
    main(sys.argv[1:])
