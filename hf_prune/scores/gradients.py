"""Per-example gradients of the loss with respect to every head's and filter's gate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy, describe_model
from ..calibration import Batch, example_count, valid_tokens
from ..errors import PruningError
from ..gates.unit_gates import UnitGates
from .per_example_loss import PerExampleLoss

# Largest accepted difference, relative to the loss, between a batch and its examples alone: half precision included.
SAME_LOSS = 0.02


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


def fisher_gradients(
    model: PreTrainedModel, batches: Iterable[Batch], anatomy: ModelAnatomy | None = None
) -> dict[str, list[torch.Tensor]]:
    """Gradients of each example's own loss with respect to each gate, at gates of one.

    One backward pass per batch, with weights frozen and dropout off, equal to running one example at a time. Losses
    that average over tokens are averaged per example (Kwon et al. 2022, Eq. 5; the authors' code averages over
    batches instead).

    Args:
        model: a supported model with a task head that returns a loss.
        batches: dictionaries of tensors with labels, on the model's device.
        anatomy: from `describe_model`, if at hand.

    Returns:
        `{"heads": [...], "filters": [...]}`, one float32 tensor `[examples, units]` per block.

    Raises:
        PruningError: no loss (labels missing), a loss that is not finite, or one that couples the examples of a batch.
    """
    anatomy = anatomy or describe_model(model)
    rows: list[list[torch.Tensor]] = [[] for _ in anatomy.blocks]
    for gradients in iterate_gradients(model, anatomy, batches):
        for store, gradient in zip(rows, gradients, strict=True):
            store.append(gradient.float())
    stacked = {block.key: torch.cat(store) for block, store in zip(anatomy.blocks, rows, strict=True)}
    return {
        "heads": [stacked[block.key] for block in anatomy.attentions],
        "filters": [stacked[block.key] for block in anatomy.feed_forwards],
    }


def iterate_gradients(
    model: PreTrainedModel, anatomy: ModelAnatomy, batches: Iterable[Batch]
) -> Iterator[list[torch.Tensor]]:
    """Yields, batch by batch, one `[examples, units]` gradient per block of `anatomy`."""
    checked = False
    with frozen(model):
        for index, batch in enumerate(batches):
            gates, loss = _gated_loss(model, anatomy.blocks, batch)
            if not torch.isfinite(loss.total):
                raise PruningError(
                    f"The loss on calibration batch {index} is {loss.total.item()}. Look for overflow in half"
                    " precision, labels out of range, or NaN in the inputs."
                )
            gradients = list(torch.autograd.grad(loss.total, gates))
            if not checked and example_count(batch) > 1:
                _check_independence(model, anatomy, batch)
                checked = True
            yield gradients


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Every module's training or evaluation mode is restored at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own mode is restored."""
    with modes_restored(model):
        model.eval()
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with weights that need no gradient; both are restored.

    Parameters that are made meanwhile from frozen ones stay frozen, so this is no place for surgery.
    """
    needs_grad = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in needs_grad:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in needs_grad:
            parameter.requires_grad_(True)


@dataclass
class _Loss:
    total: torch.Tensor
    terms: list[torch.Tensor]


def _gated_loss(model: PreTrainedModel, blocks: tuple[Block, ...], batch: Batch) -> tuple[list[torch.Tensor], _Loss]:
    """The summed per-example loss of a batch, and the per-example gates that it depends on."""
    examples = example_count(batch)
    tokens = valid_tokens(batch).sum(1)
    gates = [torch.ones(examples, block.units, device=model.device, requires_grad=True) for block in blocks]
    mode = PerExampleLoss(examples, tokens if len(tokens) == examples else tokens.reshape(examples, -1).sum(1))
    with torch.enable_grad(), UnitGates(model, blocks, gates), mode:
        loss = getattr(model(**{**batch, "return_dict": True}), "loss", None)
    if loss is None:
        raise PruningError(
            f"{type(model).__name__} returned no loss for the calibration batch ({', '.join(batch)}): labels are"
            " missing. Add the label column, or choose a score that needs none (importance='magnitude')."
        )
    if not mode.terms and examples > 1:
        raise PruningError(
            f"The loss of {type(model).__name__} is none of the known averaging losses, so it cannot be split by"
            " example. Use a calibration batch size of 1 or importance='magnitude'."
        )
    return gates, _Loss(loss.sum(), mode.terms)


def _check_independence(model: PreTrainedModel, anatomy: ModelAnatomy, batch: Batch) -> None:
    """Refuses losses that are no sum over examples: contrastive losses, statistics of a batch, unknown averages."""
    pair = _rows(batch, 0, 2)
    gates, loss = _gated_loss(model, anatomy.blocks, pair)
    first = torch.stack([term[0] for term in loss.terms]).sum()
    touched = torch.autograd.grad(first, gates, allow_unused=True) if first.requires_grad else ()
    if any(gradient is not None and gradient[1:].any() for gradient in touched):
        raise PruningError(
            f"The loss of {type(model).__name__} couples the examples of a batch, so per-example gradients do not"
            " exist. Use importance='magnitude', or a head whose loss is a sum over examples."
        )
    with torch.no_grad():
        alone = sum(
            model(**{**_rows(batch, index, index + 1), "return_dict": True}).loss.sum().item() for index in range(2)
        )
    together = loss.total.item()
    # An example without any label has no loss of its own, and nothing to compare with.
    if math.isfinite(alone) and abs(together - alone) > SAME_LOSS * max(1.0, abs(alone)):
        raise PruningError(
            f"The loss of {type(model).__name__} on two examples, {together:.4g}, is not the sum of what the model"
            f" gives for each example alone, {alone:.4g}: part of it is averaged in a way that cannot be split by"
            " example. Use a calibration batch size of 1 or importance='magnitude'."
        )


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    """Some examples of a batch; what does not belong to single examples stays as it is."""
    examples = example_count(batch)
    return {key: value[start:stop] if _has_rows(value, examples) else value for key, value in batch.items()}


def _has_rows(value: object, examples: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == examples
