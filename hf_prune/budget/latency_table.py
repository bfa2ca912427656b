"""Latency tables: seconds of one block at every width, measured at some widths and interpolated between them."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ..anatomy import Block, ModelAnatomy, UndoLog, cut_layer
from ..anatomy.cut_experts import ALIGNED_WIDTH
from ..anatomy.layer_calls import LayerCall, Segment, layer_shapes, record_calls
from ..anatomy.layouts import AttentionLayout
from ..calibration import Batch
from ..scores import frozen
from ..whole_files import written_whole
from .latency import random_batch, time_in_turn

logger = logging.getLogger(__name__)

_ACTIVATIONS = ("hidden_act", "activation", "activation_function")

WIDTHS = 24
REPEATS = 7


@dataclass(frozen=True)
class LatencyConditions:
    """What a measured latency depends on besides the block itself."""

    processor: str
    threads: int
    torch: str
    dtype: str
    attention: str
    batch_size: int
    sequence_length: int

    @classmethod
    def of(cls, model: PreTrainedModel, batch_size: int, sequence_length: int) -> LatencyConditions:
        """The conditions of measuring `model` here and now."""
        device = model.device
        processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
        return cls(
            processor=f"{device.type}: {processor}",
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            dtype=str(model.dtype).removeprefix("torch."),
            attention=str(getattr(model.config, "_attn_implementation", None)),
            batch_size=batch_size,
            sequence_length=sequence_length,
        )


def latency_tables(
    model: PreTrainedModel, anatomy: ModelAnatomy, conditions: LatencyConditions
) -> dict[str, torch.Tensor]:
    """For every block's key the seconds at 0 … units units, `[units + 1]` float64, 0 for none.

    Blocks of the same shape share one measurement. Tables are kept on disk under the machine, software, dtype, batch
    and length they were measured with (`HF_PRUNE_CACHE`, default `$HF_HOME/hf_prune`). A block whose layer does not
    run on the batch costs nothing.
    """
    tables: dict[str, torch.Tensor] = {}
    measured: dict[tuple[Any, ...], torch.Tensor] = {}
    batch = random_batch(model, conditions.batch_size, conditions.sequence_length)
    with frozen(model), torch.inference_mode():
        shapes = layer_shapes(model, anatomy.layers, batch)
    for block in tqdm(anatomy.blocks, desc="Latency tables", unit="block", leave=False):
        if block.layer not in shapes:
            tables[block.key] = torch.zeros(block.units + 1, dtype=torch.float64)
            continue
        shape = _shape(model, block, shapes[block.layer])
        if shape not in measured:
            path = _cache_path(conditions, shape)
            table = _read_table(path, block.units)
            if table is None:
                table = _measure(model, anatomy, block, batch)
                _write_table(path, conditions, shape, table)
            measured[shape] = table
        tables[block.key] = block.runs * measured[shape]
    return tables


def _shape(model: PreTrainedModel, block: Block, entered: torch.Size) -> tuple[Any, ...]:
    """What identifies a block up to its weights: its layer's class, what enters it, and the block's own sizes."""
    projections = tuple((item.axis, item.parts, item.other) for item in block.projections)
    layer = type(model.get_submodule(block.layer)).__name__
    config = model.get_submodule(block.owner).config
    activation = next((str(getattr(config, name)) for name in _ACTIVATIONS if hasattr(config, name)), "")
    return layer, activation, tuple(entered), block.kind, block.units, block.layout.name, block.share, projections


def _measure(model: PreTrainedModel, anatomy: ModelAnatomy, block: Block, batch: Batch) -> torch.Tensor:
    layer = model.get_submodule(block.layer)
    widths = _widths(block)
    with frozen(model), torch.inference_mode():
        [(hidden, [call])] = record_calls(model, Segment((block.layer,), 1), batch)
        others = [other for other in anatomy.blocks_of_layer(block.layer) if other != block]
        together = 1 + sum(_belong_together(block, other) for other in others)
        cuts = [_isolated(layer, block, others, width) for width in widths]
        passes = [_Pass(call, cut, hidden) for cut in cuts]
        seconds = time_in_turn(passes, REPEATS, model.device)
    table = np.interp(np.arange(block.units + 1), widths, np.asarray(seconds) - seconds[0])
    table = np.maximum(table, 0.0) / together
    table[0] = 0.0
    return torch.from_numpy(table)


def _widths(block: Block) -> list[int]:
    """The widths at which a block is measured."""
    lowest = _fewest(block)
    widths = np.linspace(lowest, block.units, min(WIDTHS, block.units - lowest + 1))
    # Experts of widths in between run in another, much slower way.
    step = 1 if block.group is None else ALIGNED_WIDTH
    inner = {step * round(width / step) for width in widths}
    return sorted({lowest, block.units} | {width for width in inner if lowest < width < block.units})


def _fewest(block: Block) -> int:
    """Units without which the block's layer does not run."""
    if block.unit == "experts":
        return block.minimum
    bypassed = not isinstance(block.layout, AttentionLayout) or block.layout.returns is not None
    return 0 if bypassed else block.minimum


def _isolated(layer: nn.Module, block: Block, others: Sequence[Block], width: int) -> nn.Module:
    """A copy of the layer in which only `block` and its group have units left, `width` of them each."""
    cut = copy.deepcopy(layer)
    units = {other.key: range(width if _belong_together(block, other) else _fewest(other)) for other in others}
    cut_layer(cut, [block, *others], {**units, block.key: range(width)}, UndoLog())
    return cut


def _belong_together(block: Block, other: Block) -> bool:
    return block.group is not None and block.group == other.group


@dataclass
class _Pass:
    call: LayerCall
    layer: nn.Module
    hidden: torch.Tensor

    def __call__(self) -> None:
        self.call.run(self.layer, self.hidden)


def _processor() -> str:
    """The processor's model name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


def _cache_path(conditions: LatencyConditions, shape: tuple[Any, ...]) -> Path:
    root = Path(os.environ.get("HF_PRUNE_CACHE") or Path(constants.HF_HOME) / "hf_prune")
    name = hashlib.sha256(repr((asdict(conditions), shape)).encode()).hexdigest()[:24]
    return root / "latency" / f"{name}.json"


def _read_table(path: Path, units: int) -> torch.Tensor | None:
    """A cached table; one that cannot be right is measured again."""
    try:
        values = json.loads(path.read_text(encoding="utf8"))["seconds"]
        table = torch.tensor(values, dtype=torch.float64)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    valid = table.shape == (units + 1,) and bool(torch.isfinite(table).all() and (table >= 0).all() and table[0] == 0)
    return table if valid else None


def _write_table(path: Path, conditions: LatencyConditions, shape: tuple[Any, ...], table: torch.Tensor) -> None:
    content = json.dumps({"conditions": asdict(conditions), "block": repr(shape), "seconds": table.tolist()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(content, encoding="utf8")
    except OSError as error:
        logger.warning("The latency table could not be kept in %s (%s); it will be measured again.", path.parent, error)
