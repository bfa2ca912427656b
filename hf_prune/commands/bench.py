"""`hf-prune bench`: models side by side, and how much of the speed that the FLOPs promise is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ..budget import compare_latency, count_flops
from ..errors import PruningError
from ..report.build import count_parameters
from ..report.number_text import MISSING, count_text, seconds_text, share_text
from .models import load_config, load_model, model_class_of


@dataclass(frozen=True)
class BenchRow:
    """One model at one batch size and length.

    Attributes:
        model: its name.
        batch_size, sequence_length: the input.
        seconds: median of a forward pass.
        speedup: the first model's seconds divided by this one's.
        flops_ratio: the first model's FLOPs of attention and FFN divided by this one's: the ideal speed-up. None
            for a model that has nothing left there.
        of_ideal: speedup / flops_ratio.
    """

    model: str
    batch_size: int
    sequence_length: int
    seconds: float
    speedup: float
    flops_ratio: float | None
    of_ideal: float | None


@dataclass(frozen=True)
class Bench:
    """All rows, and what they were measured on."""

    device: str
    dtype: str
    threads: int
    repeats: int
    parameters: dict[str, int]
    rows: tuple[BenchRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return asdict(self)


def bench_models(
    names: Sequence[str],
    batch_sizes: Sequence[int],
    sequence_lengths: Sequence[int],
    *,
    repeats: int = 10,
    threads: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
) -> Bench:
    """Times the models in turn, so that drifts of the machine's speed cancel, at every batch size and length.

    Args:
        names: local folders or Hub names; all are compared with the first.
        batch_sizes: sequences per batch.
        sequence_lengths: tokens per sequence, without padding.
        repeats: timed passes per model and setting, after a warm-up.
        threads: on the CPU, by default as PyTorch chooses.
        dtype, device: see `hf_prune.commands.models.load_model`.

    Raises:
        PruningError: a model that cannot be loaded or is too short for a length, or a name given twice.
    """
    if len(set(names)) != len(names):
        raise PruningError(f"A model is named twice in {', '.join(names)}; name each once.")
    models = [load_model(name, model_class_of(load_config(name)), dtype, device)[0] for name in names]
    rows: list[BenchRow] = []
    settings = [(batch, length) for length in sequence_lengths for batch in batch_sizes]
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for batch, length in tqdm(settings, desc="Measure", unit="setting"):
            seconds = compare_latency(models, batch, length, repeats=repeats)
            rows += _rows(names, models, batch, length, seconds)
    finally:
        torch.set_num_threads(before)
    return Bench(
        device=models[0].device.type,
        dtype=str(models[0].dtype).removeprefix("torch."),
        threads=threads or before,
        repeats=repeats,
        parameters={name: count_parameters(model) for name, model in zip(names, models, strict=True)},
        rows=tuple(rows),
    )


def bench_table(bench: Bench) -> Table:
    """The rows as a table, a group per batch size and length."""
    threads = f", {bench.threads} thread{'s' * (bench.threads > 1)}" if bench.device == "cpu" else ""
    table = Table(
        title=Text(f"Forward pass, median of {bench.repeats} ({bench.device}, {bench.dtype}{threads})"),
        caption=Text("ideal: the ratio of the FLOPs of attention and FFN; embeddings and task head are not in it"),
        box=box.SIMPLE_HEAD,
    )
    for header in ("batch", "tokens"):
        table.add_column(header, justify="right")
    table.add_column("model", overflow="fold")
    for header in ("parameters", "latency", "speed-up", "ideal", "of ideal"):
        table.add_column(header, justify="right")
    before = None
    for row in bench.rows:
        setting = row.batch_size, row.sequence_length
        if before not in (None, setting):
            table.add_section()
        texts = (str(row.batch_size), str(row.sequence_length)) if setting != before else ("", "")
        ideal = f"{row.flops_ratio:.2f}×" if row.flops_ratio else MISSING
        ratios = f"{row.speedup:.2f}×", ideal, share_text(row.of_ideal, 1) if row.of_ideal else MISSING
        cost = count_text(bench.parameters[row.model]), seconds_text(row.seconds)
        table.add_row(*texts, Text(row.model), *cost, *ratios)
        before = setting
    return table


def numbers(text: str, option: str) -> list[int]:
    """The whole numbers of a list with commas.

    Raises:
        PruningError: something else, or a number below 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise PruningError(f"--{option} {text}: whole numbers above 0 with commas between are needed, as in 1,8,32.")
    return [int(part) for part in parts]


def _rows(
    names: Sequence[str], models: Sequence[PreTrainedModel], batch: int, length: int, seconds: Sequence[float]
) -> list[BenchRow]:
    flops = [count_flops(model, length) for model in models]
    rows = []
    for name, time, cost in zip(names, seconds, flops, strict=True):
        speedup = seconds[0] / time
        ideal = flops[0] / cost if flops[0] and cost else None
        rows.append(BenchRow(name, batch, length, time, speedup, ideal, speedup / ideal if ideal else None))
    return rows
