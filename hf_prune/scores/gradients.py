"""Per-example gradients of the loss with respect to every head's and filter's gate."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy, describe_model
from ..calibration import Batch, example_count, valid_tokens
from ..errors import PruningError
from ..offloading import device_of
from .per_example_loss import PerExampleLoss
from .recomputing import gated

# Largest accepted difference, relative to the loss, between a batch and its examples alone: half precision included.
SAME_LOSS = 0.02
# Largest accepted difference, relative to the largest gate gradient, between a loss and its per-example parts.
SAME_GRADIENT = {torch.float64: 1e-6, torch.float32: 1e-5}

logger = logging.getLogger(__name__)


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
    with closing(iterate_gradients(model, anatomy, batches)) as found:
        for gradients in found:
            for store, gradient in zip(rows, gradients, strict=True):
                store.append(gradient.float())
    stacked = {block.key: torch.cat(store) for block, store in zip(anatomy.blocks, rows, strict=True)}
    warn_of_idle(stacked)
    return {
        "heads": [stacked[block.key] for block in anatomy.attentions],
        "filters": [stacked[block.key] for block in anatomy.feed_forwards],
    }


def iterate_gradients(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    batches: Iterable[Batch],
    watch: AbstractContextManager[object] | None = None,
    first: int = 0,
) -> Generator[list[torch.Tensor]]:
    """Yields, batch by batch, one `[examples, units]` gradient per block of `anatomy`.

    Each batch's forward pass runs inside `watch`, and nothing else does. The number of the first batch is `first`.
    """
    checked = False
    with frozen(model):
        for index, batch in enumerate(batches, first):
            with watch or nullcontext():
                gates, loss = _gated_loss(model, anatomy, batch)
            if not torch.isfinite(loss.total):
                raise PruningError(
                    f"The loss on calibration batch {index} is {loss.total.item()}. Look for overflow in half"
                    " precision, labels out of range, or NaN in the inputs."
                )
            gradients = weighted_gradients([loss.total], gates, keep_graph=False)
            check_finite(gradients, index)
            if not checked and example_count(batch) > 1:
                _check_independence(model, anatomy, batch)
                checked = True
            yield gradients


def check_finite(gradients: Sequence[torch.Tensor], batch: int) -> None:
    """Raises a PruningError where the gradients of a batch with a finite loss are not finite."""
    if not torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
        raise PruningError(
            f"The loss on calibration batch {batch} is finite, but its gradients are not. Look for overflow in half"
            " precision on the way back (load the model with dtype=torch.bfloat16 or float32), or for rows that are"
            " nothing but padding."
        )


def warn_of_idle(gradients: Mapping[str, torch.Tensor]) -> None:
    """Says which blocks have gradients, or sums of their absolute values, of nothing but zeros; by block key."""
    idle = [key for key, values in gradients.items() if values.numel() and not values.any()]
    if idle:
        logger.warning(
            "The loss on the calibration data depends on no unit of %s: their scores are 0, and they go first. Give"
            " data that reaches them, or name them in exclude_modules.",
            ", ".join(idle),
        )


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
    # By their places: offloaded parameters are other objects each time that they are used.
    needs_grad = [
        (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    for module, name in needs_grad:
        module.get_parameter(name).requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for module, name in needs_grad:
            module.get_parameter(name).requires_grad_(True)


@dataclass
class _Loss:
    """The summed loss of a batch, the per-example values that it is made of, and what the model says about it."""

    total: torch.Tensor
    terms: list[torch.Tensor]
    balances_experts: bool = False


def _gated_loss(model: PreTrainedModel, anatomy: ModelAnatomy, batch: Batch) -> tuple[list[torch.Tensor], _Loss]:
    """The summed per-example loss of a batch, and the per-example gates that it depends on."""
    examples, gates = example_count(batch), example_gates(model, anatomy.blocks, batch)
    # In an encoder-decoder the mask is the encoder's, and the loss the decoder's.
    valid = None if getattr(model.config, "is_encoder_decoder", False) else valid_tokens(batch)
    labels = batch.get("labels")
    mode = PerExampleLoss(
        examples,
        labels if isinstance(labels, torch.Tensor) else None,
        valid if valid is not None and len(valid) == examples else None,
    )
    with torch.enable_grad(), gated(model, anatomy, gates), mode:
        output = model(**{**batch, "return_dict": True})
    loss = getattr(output, "loss", None)
    if loss is None:
        raise labels_missing(model, batch)
    if not mode.terms and examples > 1:
        raise PruningError(
            f"The loss of {type(model).__name__} is none of the known averaging losses, so it cannot be split by"
            " example. Use a calibration batch size of 1 or FisherPruningConfig(importance='magnitude')."
        )
    return gates, _Loss(loss.sum(), mode.terms, getattr(output, "aux_loss", None) is not None)


def example_gates(model: PreTrainedModel, blocks: Sequence[Block], batch: Batch) -> list[torch.Tensor]:
    """Gates of one, of each example's own, to take gradients by.

    Args:
        model: whose gates they are to be.
        blocks: whose units they are for.
        batch: the examples.

    Returns:
        One tensor `[examples, units]` per block, which requires a gradient.

    Raises:
        PruningError: the batch is known in advance to have no loss of each example's own.
    """
    examples = example_count(batch)
    _check_batch(model, batch, examples)
    return [torch.ones(examples, block.units, device=device_of(model), requires_grad=True) for block in blocks]


def _check_batch(model: PreTrainedModel, batch: Batch, examples: int) -> None:
    if batch.get("return_loss") or ("return_loss" in _parameters(model) and "labels" not in batch):
        raise PruningError(
            f"The loss of {type(model).__name__} compares the examples of a batch with each other (it is contrastive),"
            " so per-example gradients do not exist. Use FisherPruningConfig(importance='magnitude'), or a model with a"
            " classification head."
        )
    if examples == 1:
        return
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) != 1 and len(value) % examples:
            raise PruningError(
                f"{name} of shape {tuple(value.shape)} has no rows for each of the {examples} examples of its batch"
                " (packed image patches, for instance), so gradients cannot be told apart by example. Use a"
                " calibration batch size of 1 or FisherPruningConfig(importance='magnitude')."
            )


def _parameters(model: PreTrainedModel) -> Collection[str]:
    return inspect.signature(model.forward).parameters


def _check_independence(model: PreTrainedModel, anatomy: ModelAnatomy, batch: Batch) -> None:
    """Refuses losses that are no sum over examples: contrastive losses, statistics of a batch, unknown averages."""
    pair = some_examples(batch, 0, 2)
    gates, loss = _gated_loss(model, anatomy, pair)
    if any(gradient[1:].any() for gradient in weighted_gradients([term[0] for term in loss.terms], gates)):
        raise PruningError(
            f"The loss of {type(model).__name__} couples the examples of a batch, so per-example gradients do not"
            " exist (or its layers do not keep the examples in the first dimension). Use a calibration batch size of 1,"
            " FisherPruningConfig(importance='magnitude'), or a head whose loss is a sum over examples."
        )
    _check_terms(model, gates, loss)
    with torch.no_grad():
        alone = sum(
            model(**{**some_examples(batch, index, index + 1), "return_dict": True}).loss.sum().item()
            for index in range(2)
        )
    together = loss.total.item()
    # An example without any label has no loss of its own, and nothing to compare with.
    if math.isfinite(alone) and abs(together - alone) > SAME_LOSS * max(1.0, abs(alone)):
        raise PruningError(
            f"The loss of {type(model).__name__} on two examples, {together:.4g}, is not the sum of what the model"
            f" gives for each example alone, {alone:.4g}: part of it is averaged in a way that cannot be split by"
            " example. Use a calibration batch size of 1 or FisherPruningConfig(importance='magnitude')."
        )


def _check_terms(model: PreTrainedModel, gates: Sequence[torch.Tensor], loss: _Loss) -> None:
    """Refuses losses with a part besides the averages that were split: a router's balance, a regulariser."""
    shares = weighted_gradients([loss.total], loss.terms)
    whole = weighted_gradients([loss.total], gates)
    explained = weighted_gradients(loss.terms, gates, shares)
    largest = max((float(gradient.abs().max()) for gradient in whole if gradient.numel()), default=0.0)
    differences = [float((a - b).abs().max()) for a, b in zip(whole, explained, strict=True) if a.numel()]
    tolerance = SAME_GRADIENT.get(model.dtype, SAME_LOSS)
    if not max(differences, default=0.0) > tolerance * largest:
        return
    what = "a term that balances its experts over the whole batch" if loss.balances_experts else "a part of its own"
    advice = "Set model.config.output_router_logits = False, or use" if loss.balances_experts else "Use"
    raise PruningError(
        f"The loss of {type(model).__name__} has {what} besides the average over examples, which cannot be split by"
        f" example. {advice} a calibration batch size of 1 or FisherPruningConfig(importance='magnitude')."
    )


def weighted_gradients(
    outputs: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor] | None = None,
    keep_graph: bool = True,
) -> list[torch.Tensor]:
    """Σ weights · ∂outputs/∂inputs, zero where nothing depends on an input."""
    kept = [index for index, output in enumerate(outputs) if output.requires_grad]
    if not kept:
        return [torch.zeros_like(value) for value in inputs]
    return list(
        torch.autograd.grad(
            [outputs[index] for index in kept],
            list(inputs),
            [weights[index] for index in kept] if weights is not None else None,
            retain_graph=keep_graph,
            materialize_grads=True,
        )
    )


def some_examples(batch: Batch, start: int, stop: int) -> Batch:
    """Some examples of a batch; what does not belong to single examples stays as it is."""
    examples = example_count(batch)
    return {key: value[start:stop] if _has_rows(value, examples) else value for key, value in batch.items()}


def _has_rows(value: object, examples: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == examples


def labels_missing(model: PreTrainedModel, batch: Batch) -> PruningError:
    """What to say where a model returns no loss."""
    return PruningError(
        f"{type(model).__name__} returned no loss for the calibration batch ({', '.join(batch)}): labels are missing."
        " Add the label column, or choose scores that need none: FisherPruningConfig(labels='model') or"
        " (importance='magnitude')."
    )
