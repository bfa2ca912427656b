"""Peak memory of training with `PruningCallback`, beside that of a plain Trainer.

all-MiniLM-L6-v2 with a classifier, batches of 32 × 128 tokens drawn at random, AdamW: three steps, so that the
optimizer's state is there and masks have been made anew. Each way to train runs in a process of its own; what the model
and the data take before is not counted. Targets: a static mask, in place and as an adapter, takes at most what plain
fine-tuning takes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence

from arguments import benchmark_parser, prepare_run, write_results
from callback_variants import ADAPTER, PLAIN, STATIC, VARIANTS, add_batch_arguments, make_trainer
from markdown_tables import markdown_table, verdict
from peak_memory import measured_apart, peak_memory
from tqdm import tqdm

STEPS = 3
TARGETS = {STATIC: 1.0, ADAPTER: 1.0}


def peak_of_training(name: str, arguments: argparse.Namespace) -> int:
    """Bytes at the peak of one training in this process."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(VARIANTS[name], arguments, folder, STEPS)
        with peak_memory(arguments.device) as peak:
            trainer.train()
    return peak.bytes


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser(__doc__)
    add_batch_arguments(parser)
    parser.add_argument("--rounds", type=int, default=2, help="processes for each; default: %(default)s")
    parser.add_argument("--measure", choices=VARIANTS, help="measure only this, in this process, and print the bytes")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Starts the trainings one after the other and prints the ratios."""
    arguments = parse_arguments(argv)
    prepare_run(arguments)
    if arguments.measure:
        print(peak_of_training(arguments.measure, arguments))
        return
    runs = [name for _ in range(arguments.rounds) for name in VARIANTS]
    found = [(name, measured_apart(__file__, argv, name)) for name in tqdm(runs, desc="Measure", unit="process")]
    peaks = {name: statistics.median(peak for other, peak in found if other == name) for name in VARIANTS}
    ratios = {name: peak / peaks[PLAIN] for name, peak in peaks.items()}
    rows = []
    for name, peak in peaks.items():
        target = TARGETS.get(name)
        judged = ["", ""] if target is None else [f"≤ {target}", verdict(ratios[name] <= target)]
        rows.append([name, f"{peak / 2**20:,.0f}", f"{ratios[name]:.2f}", *judged])
    shape = f"{arguments.batch_size} × {arguments.length} tokens"
    print(f"## all-MiniLM-L6-v2, {shape}, {arguments.device.type}\n")
    print(markdown_table(["", "peak MiB", "ratio", "target", "reached"], rows))
    write_results(arguments.output, {"shape": shape, "peak_bytes": peaks, "ratios": ratios})


if __name__ == "__main__":
    main(sys.argv[1:])
