"""What pruned single weights take on disk, and how long a static mask's adapter takes to load.

all-MiniLM-L6-v2 with a classifier, 90 % of the single weights removed.

- Magnitude pruning (also of the word embeddings), saved densely and with `format="bitmask"`: the file with the weights,
  in float32 and in half precision. Target: at least 5 times smaller.
- A static mask as a PEFT adapter, with the trained task head and with label words: the file with the adapter, and the
  median time of `PeftModel.from_pretrained` on a model in memory. Targets: at most 1.4 MB, less than a second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import benchmark_parser, prepare_run, write_results
from callback_variants import BASE_MODEL, Variant, make_trainer
from markdown_tables import markdown_table, verdict
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hf_prune import MagnitudePruningConfig, StaticMaskConfig, prune_model

SPARSITY = 0.9
SMALLER, ADAPTER_BYTES, LOAD_SECONDS = 5.0, 1.4e6, 1.0
PRECISIONS = {"float32": torch.float32, "half precision": torch.float16}
HEADS: dict[str, dict[str, str] | None] = {
    "task head": None,
    "label words": {"LABEL_0": "terrible", "LABEL_1": "great"},
}


def load_base(arguments: argparse.Namespace, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model with a new classifier."""
    folder = arguments.models / BASE_MODEL
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).to(arguments.device)


def weight_bytes(folder: str) -> int:
    """Of all files with weights."""
    return sum(path.stat().st_size for path in Path(folder).glob("*model*.safetensors"))


def checkpoint_sizes(model: PreTrainedModel) -> dict[str, int]:
    """Bytes of the weights of a pruned model, by format."""
    result = prune_model(model, MagnitudePruningConfig(sparsity=SPARSITY))
    sizes = {}
    for name in ("dense", "bitmask"):
        with tempfile.TemporaryDirectory() as folder:
            result.save_pretrained(folder, format=name)
            sizes[name] = weight_bytes(folder)
    return sizes


def save_adapter(arguments: argparse.Namespace, label_words: dict[str, str] | None, folder: str) -> None:
    """Trains a mask for two steps, in which it gets as sparse as asked for, and saves it."""
    config = StaticMaskConfig(sparsity=SPARSITY, begin=0, end=0, task_type="SEQ_CLS", label_words=label_words)
    trainer = make_trainer(Variant(lambda: config, adapter=True), arguments, folder, steps=2)
    trainer.train()
    trainer.model.save_pretrained(folder)


def load_seconds(arguments: argparse.Namespace, folder: str) -> float:
    """Median over some loads."""
    seconds = []
    for _ in range(arguments.rounds):
        base = load_base(arguments)
        start = time.perf_counter()
        PeftModel.from_pretrained(base, folder)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_checkpoints(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Sizes by precision and format, and their table."""
    found = {name: checkpoint_sizes(load_base(arguments, dtype)) for name, dtype in PRECISIONS.items()}
    rows = []
    for name, sizes in found.items():
        ratio = sizes["dense"] / sizes["bitmask"]
        rows.append(
            [name, *map(_megabytes, sizes.values()), f"{ratio:.1f}", f"≥ {SMALLER:.0f}", verdict(ratio >= SMALLER)]
        )
    return found, markdown_table(["", "dense MB", "bitmask MB", "times smaller", "target", "reached"], rows)


def measure_adapters(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Size and time by kind of head, and their table."""
    found, rows = {}, []
    for name, label_words in HEADS.items():
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(arguments, label_words, folder)
            size, seconds = weight_bytes(folder), load_seconds(arguments, folder)
        found[name] = {"bytes": size, "load_seconds": seconds}
        reached = verdict(size <= ADAPTER_BYTES and seconds < LOAD_SECONDS)
        rows.append([name, _megabytes(size), f"{seconds:.2f}", reached])
    headers = ["", f"MB (≤ {_megabytes(ADAPTER_BYTES)})", f"seconds (< {LOAD_SECONDS:.0f})", "reached"]
    return found, markdown_table(headers, rows)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.2f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints both tables."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="loads of an adapter; default: %(default)s")
    parser.set_defaults(batch_size=4, length=16)
    arguments = parser.parse_args(argv)
    prepare_run(arguments)
    checkpoints, table = measure_checkpoints(arguments)
    print(f"## Checkpoints with {SPARSITY:.0%} of the single weights removed\n\n{table}\n", flush=True)
    adapters, table = measure_adapters(arguments)
    print(
        f"## Static masks on all-MiniLM-L6-v2 as adapters, {SPARSITY:.0%} of the encoder's weights removed\n\n{table}"
    )
    write_results(arguments.output, {"checkpoints": checkpoints, "adapters": adapters})


if __name__ == "__main__":
    main()
