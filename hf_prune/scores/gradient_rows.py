"""Per-example gate gradients over many examples, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ..anatomy import ModelAnatomy
from ..calibration import Batch, CalibrationData
from ..errors import PruningError
from ..offloading import device_of
from .gradients import iterate_gradients
from .model_labels import iterate_model_gradients

Labels = Literal["data", "model"]


class GradientRows:
    """The gate gradients of one block over many examples, bounded in memory.

    `matrix()` has the same Gram matrix as the stack of all rows that were added, which is all that rearrangement
    needs; once there are more than twice as many rows as units, they are replaced by the triangular factor of their QR
    decomposition.

    Args:
        units: units of the block.
        device: where the gradients come from.
        keep_rows: whether `matrix()` will be asked for; the sums need no rows.

    Attributes:
        examples: rows added so far.
        absolute_sum: Σ|gradient| over examples, `[units]`, float64.
        square_sum: Σ gradient² over examples, `[units]`, float64.
    """

    def __init__(self, units: int, device: torch.device | str = "cpu", keep_rows: bool = True) -> None:
        self.units = units
        self.examples = 0
        self.absolute_sum = torch.zeros(units, dtype=torch.float64, device=device)
        self.square_sum = torch.zeros(units, dtype=torch.float64, device=device)
        self._keep_rows = keep_rows
        self._parts = [torch.zeros(0, units, device=device)]

    def add(self, rows: torch.Tensor) -> None:
        """Adds gradients `[examples, units]`."""
        rows = rows.detach().float()
        self.examples += len(rows)
        self.absolute_sum += rows.abs().double().sum(0)
        self.square_sum += rows.double().square().sum(0)
        if not self._keep_rows:
            return
        self._parts.append(rows)
        if sum(map(len, self._parts)) > 2 * max(self.units, 256):
            self._parts = [torch.linalg.qr(torch.cat(self._parts).double(), mode="r").R.float()]

    def matrix(self) -> torch.Tensor:
        """`[rows, units]`, float32.

        Raises:
            PruningError: no rows were kept.
        """
        if not self._keep_rows:
            raise PruningError("The rows of these gradients were not kept; collect them with keep_rows=True.")
        return torch.cat(self._parts)


def collect_gradients(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    data: CalibrationData,
    keep_rows: bool = True,
    labels: Labels = "data",
    watch: AbstractContextManager[object] | None = None,
    batches: Sequence[Batch] | None = None,
) -> dict[str, GradientRows]:
    """Gate gradients of every block over this process's calibration data, by block key.

    Args:
        model: the dense model.
        anatomy: from `describe_model`.
        data: the calibration data.
        keep_rows: see `GradientRows`.
        labels: those in the "data", or the "model"'s own, see `iterate_model_gradients`.
        watch: each batch's forward pass runs inside of it.
        batches: this process's first batches from `data`, where not all of them are wanted.
    """
    rows = {block.key: GradientRows(block.units, device_of(model), keep_rows) for block in anatomy.blocks}
    total = data.batches if batches is None else len(batches)
    bar = tqdm(data if batches is None else batches, total=total, desc="Gate gradients", unit="batch")
    if labels == "model":
        found = iterate_model_gradients(model, anatomy, bar, watch, data.batch_number)
    else:
        found = iterate_gradients(model, anatomy, bar, watch)
    for gradients in found:
        for block, gradient in zip(anatomy.blocks, gradients, strict=True):
            rows[block.key].add(gradient)
    return rows
