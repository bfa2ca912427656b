"""Post-training pruning of small real models that are not BERT: a Llama, a GPT-2 and a ViT.

Each is pruned to 0.9, 0.8, 0.7 and 0.5 of its FLOPs with every recovery, without training, on several calibration
samples, and judged by what it was made for: perplexity on stories, inputs sorted without a mistake, digits recognised.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from arguments import benchmark_parser, prepare_run, write_results
from cell_arguments import add_cache_arguments, add_seed_argument
from cells import CellCache
from intervals import Estimate
from markdown_tables import markdown_table
from small_subjects import Digits, Sorter, Stories, Subject
from tqdm import tqdm

from hf_prune import FisherPruningConfig, InfeasibleBudgetError, prune_model

FLOPS = (0.9, 0.8, 0.7, 0.5)
RECOVERIES = ("none", "mask_tuning", "weights")


def subjects_of(arguments: argparse.Namespace) -> dict[str, Callable[[], Subject]]:
    """How to make each subject; training and reading happen only for those that are asked for."""
    return {
        "stories": lambda: Stories(arguments.models, arguments.data),
        "sorter": lambda: Sorter(arguments.models),
        "digits": Digits,
    }


def measure(name: str, subject: Subject, cache: CellCache, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The score at every budget with every recovery and calibration sample, measured now or earlier."""
    cells = []
    asked = [(seed, flops, kind) for seed in range(arguments.seeds) for flops in FLOPS for kind in RECOVERIES]
    for seed, flops, recovery in tqdm(asked, desc=name, unit="cell"):
        config = FisherPruningConfig(flops=flops, recovery=recovery, round_to=arguments.round_to)
        settings = {"subject": name, "seed": seed, "tag": arguments.tag, "config": config.to_dict()}
        cell = f"{name}-{flops}-{recovery}-seed{seed}"
        measured = cache.read(cell, settings)
        if measured is None:
            measured = _measured(subject, config, seed)
            cache.write(cell, settings, measured)
        cells.append({"flops": flops, "recovery": recovery, "seed": seed, **measured})
    return [cell for cell in cells if "score" in cell]


def _measured(subject: Subject, config: FisherPruningConfig, seed: int) -> dict[str, Any]:
    model = subject.model()
    try:
        report = prune_model(model, config, subject.calibration(seed)).report
    except InfeasibleBudgetError as error:
        return {"refused": str(error)}
    return {"kept_flops": report.pruned.flops / report.dense.flops, "score": subject.score(model)}


def table(subject: Subject, dense: float, cells: Sequence[dict[str, Any]]) -> str:
    """One row per budget, one column per recovery."""
    rows = []
    for flops in FLOPS:
        row = [f"{flops}"]
        for recovery in RECOVERIES:
            scores = [cell["score"] for cell in cells if (cell["flops"], cell["recovery"]) == (flops, recovery)]
            row.append(_text(Estimate.of(scores)) if scores else "–")
        rows.append(row)
    direction = "lower is better" if subject.lower_is_better else "higher is better"
    caption = f"Dense: {dense:.2f}. Below: {subject.metric} after pruning ({direction}), mean ± 95 % interval."
    return f"## {subject.title}\n\n{caption}\n\n{markdown_table(['FLOPs', *RECOVERIES], rows)}\n"


def _text(estimate: Estimate) -> str:
    width = "" if estimate.half_width is None else f" ± {estimate.half_width:.2f}"
    return f"{estimate.mean:.2f}{width}"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser(__doc__)
    names = ("stories", "sorter", "digits")
    parser.add_argument("--subjects", nargs="+", choices=names, default=names, help="default: all")
    add_cache_arguments(parser, "other_architectures")
    add_seed_argument(parser, 3, "calibration samples")
    parser.add_argument(
        "--round-to", type=int, default=1, help="widths are multiples of this; these models are too small for 8"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints one table per model."""
    arguments = parse_arguments(argv)
    prepare_run(arguments)
    results = []
    for name in arguments.subjects:
        subject = subjects_of(arguments)[name]()
        dense = subject.score(subject.model())
        cells = measure(name, subject, CellCache(arguments.cache), arguments)
        print(table(subject, dense, cells), flush=True)
        results.append({"model": subject.title, "metric": subject.metric, "dense": dense, "cells": cells})
    write_results(arguments.output, {"round_to": arguments.round_to, "subjects": results})


if __name__ == "__main__":
    main()
