"""Means over the mini-batches of a training run, of values that come in parts and sometimes twice."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import PruningError


class Tally:
    """The mean over mini-batches of some values, per gate.

    A layer that shares its weights runs several times in one mini-batch, and a layer that is recomputed for the
    backward pass runs again: of such runs the largest values count, once. With a gate per example every example of a
    mini-batch counts by itself.

    Attributes:
        total: sums over what was counted, `[gates]`, float64.
        count: how much was counted, float64.
        batch: the values of the mini-batch under way, `[1 or examples, gates]`; None without one.
    """

    def __init__(self, gates: int) -> None:
        self.total = torch.zeros(gates, dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.float64)
        self.batch: torch.Tensor | None = None

    def see(self, values: torch.Tensor) -> None:
        """Adds one run's values `[1 or examples, gates]` to the mini-batch under way.

        Raises:
            PruningError: a second run is one of other examples.
        """
        if self.batch is None:
            self.batch = values
        elif self.batch.shape == values.shape:
            self.batch = torch.maximum(self.batch, values)
        else:
            raise PruningError(
                f"A layer ran on {len(self.batch)} and on {len(values)} examples in one forward pass, so their values"
                " cannot be put together. Use reduction='batch'."
            )

    def end_batch(self) -> None:
        """Counts the mini-batch under way, if there is one."""
        if self.batch is not None:
            self.to(self.batch.device)
            self.total = self.total + self.batch.to(self.total.dtype).sum(0)
            self.count = self.count + len(self.batch)
            self.batch = None

    def to(self, device: torch.device) -> None:
        """Moves the sums."""
        precision = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs know no float64
        self.total, self.count = self.total.to(device, precision), self.count.to(device, precision)

    def reset(self) -> None:
        """Forgets everything."""
        self.total, self.count = torch.zeros_like(self.total), torch.zeros_like(self.count)
        self.batch = None

    def mean(self) -> torch.Tensor:
        """The means, float64 `[gates]` on the CPU; NaN where nothing was counted."""
        return (self.total / self.count).double().cpu()

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """The sums, on the CPU."""
        sums = {"total": self.total, "count": self.count}
        return {f"{name}.{key}": value.double().cpu().clone() for key, value in sums.items()}

    def check_state(self, tensors: Mapping[str, torch.Tensor], name: str) -> None:
        """Raises a PruningError where stored sums are missing or do not fit."""
        for key, own in (("total", self.total), ("count", self.count)):
            stored = tensors.get(f"{name}.{key}")
            if stored is None or stored.shape != own.shape:
                what = "missing" if stored is None else f"of shape {tuple(stored.shape)}"
                raise PruningError(f"{name}.{key} must have the shape {tuple(own.shape)}; what was stored is {what}.")

    def load_state(self, tensors: Mapping[str, torch.Tensor], name: str) -> None:
        """The inverse of `state`, for tensors that `check_state` let pass."""
        device = self.total.device
        self.total, self.count = tensors[f"{name}.total"].double().clone(), tensors[f"{name}.count"].double().clone()
        self.batch = None
        self.to(device)
