"""What pruning costs in time, beside what training costs.

The wall time of one call of `prune_model` with default settings (half the FLOPs, 2,048 calibration examples), beside
one ordinary epoch over the same rows: forward, backward and an AdamW step, batches of 32 in random order, padded by the
same collator. Loading and tokenising are in neither. Target: at most 1.0 times the epoch. The stages are listed as in
Table 5 of Kwon et al. (2022). Both are repeated in turn, and the medians are compared.

The library sorts calibration rows by length; --by-length lets the epoch do so as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from arguments import benchmark_parser, prepare_run, write_results
from datasets import Dataset
from markdown_tables import markdown_table, verdict
from tasks import TASKS, TaskRows, load_model, load_tokenizer
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import DataCollatorWithPadding, PreTrainedModel

from hf_prune import FisherPruningConfig, prune_model
from hf_prune.calibration import CalibrationData

FLOPS = 0.5
BATCH_SIZE = 32
TARGET = 1.0
# Any rate will do: the epoch is timed, not used.
LEARNING_RATE = 1e-5

Collator = Callable[[list[Any]], Mapping[str, torch.Tensor]]


def timed_pruning(model: PreTrainedModel, rows: Dataset, collator: Collator) -> tuple[float, dict[str, float]]:
    """Seconds of the whole call, and of its stages."""
    start = _now(model)
    result = prune_model(model, FisherPruningConfig(flops=FLOPS), rows, data_collator=collator)
    return _now(model) - start, dict(result.report.stages)


def timed_epoch(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> float:
    """Seconds of one plain training epoch."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    start = _now(model)
    for batch in tqdm(batches, desc="Train", unit="batch", leave=False, disable=None):
        model(**{name: value.to(model.device) for name, value in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return _now(model) - start


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def stage_table(seconds: Sequence[float], stages: Sequence[Mapping[str, float]]) -> str:
    """Each stage's median share of the whole call, and the call's median seconds."""
    names = list(dict.fromkeys(name for found in stages for name in found))
    shares = {
        name: statistics.median(found.get(name, 0) / total for found, total in zip(stages, seconds, strict=True))
        for name in names
    }
    rest = max(0.0, 1 - sum(shares.values()))
    row = [*(f"{100 * shares[name]:.1f} %" for name in names), f"{100 * rest:.1f} %"]
    headers = ["", *names, "other", "total (s)"]
    return markdown_table(headers, [["prune_model", *row, f"{statistics.median(seconds):.1f}"]])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prunes and trains in turn, each time from the same weights."""
    task = TASKS[arguments.task]
    tokenizer = load_tokenizer(task, arguments.models)
    collator: Collator = DataCollatorWithPadding(tokenizer)
    model = load_model(task, arguments.models, arguments.device)
    rows = TaskRows(task, arguments.data, tokenizer, model.config.label2id).calibration(0, arguments.examples)
    batches: Iterable[Mapping[str, Any]] = DataLoader(rows, BATCH_SIZE, shuffle=True, collate_fn=collator)
    if arguments.by_length:
        batches = CalibrationData(rows, model, data_collator=collator, batch_size=BATCH_SIZE)
    pruning, stages, epochs = [], [], []
    for _ in tqdm(range(arguments.rounds), desc="Rounds", unit="round"):
        seconds, found = timed_pruning(load_model(task, arguments.models, arguments.device), rows, collator)
        pruning.append(seconds)
        stages.append(found)
        epochs.append(timed_epoch(load_model(task, arguments.models, arguments.device), batches))
    ratio = statistics.median(pruning) / statistics.median(epochs)
    return {"pruning_seconds": pruning, "epoch_seconds": epochs, "stages": stages, "ratio": ratio}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--task", choices=TASKS, default="sst2", help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=2048, help="calibration examples; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; default: %(default)s")
    parser.add_argument("--by-length", action="store_true", help="train on batches of similar length, too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the ratio and the stages."""
    arguments = parse_arguments(argv)
    prepare_run(arguments)
    found = measure(arguments)
    order = "by length" if arguments.by_length else "at random"
    print(f"## {TASKS[arguments.task].model}, {arguments.examples:,} examples, {arguments.device.type}\n")
    headers = ["", "seconds (median)", "ratio", "target", "reached"]
    epoch, pruning = (statistics.median(found[name]) for name in ("epoch_seconds", "pruning_seconds"))
    holds = verdict(found["ratio"] <= TARGET)
    rows = [
        [f"one epoch, batches {order}", f"{epoch:.1f}", "1", "", ""],
        [f"prune_model, flops={FLOPS}", f"{pruning:.1f}", f"{found['ratio']:.2f}", f"≤ {TARGET}", holds],
    ]
    print(markdown_table(headers, rows))
    print(f"\nWhere the time goes:\n\n{stage_table(found['pruning_seconds'], found['stages'])}")
    write_results(arguments.output, {"model": TASKS[arguments.task].model, "batches": order, **found})


if __name__ == "__main__":
    main()
