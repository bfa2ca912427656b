"""Gate gradients by their definition: one example, its own loss, one backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy import Block
from tests.small_models import Batch


def single_examples(batch: Batch) -> list[Batch]:
    """A batch of one for every example."""
    examples = len(next(iter(batch.values())))
    return [{name: value[index : index + 1] for name, value in batch.items()} for index in range(examples)]


@contextmanager
def scaled(
    model: PreTrainedModel, gates: Sequence[torch.Tensor], blocks: Sequence[Block] | None = None
) -> Iterator[None]:
    """Multiplies every head's and filter's contribution, in the order of `blocks` (by default all the model's)."""

    def multiply(gate: torch.Tensor, width: int):
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
            units = args[0].reshape(*args[0].shape[:-1], len(gate), width)
            return (units * gate[:, None]).reshape(args[0].shape)

        return hook

    handles = []
    for block, gate in zip(_blocks(model, blocks), gates, strict=True):
        projection = model.get_submodule(block.layer).get_submodule(block.output.path)
        handles.append(projection.register_forward_pre_hook(multiply(gate, block.output.width)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ones(model: PreTrainedModel, blocks: Sequence[Block] | None = None) -> list[torch.Tensor]:
    """A gate of ones per block."""
    return [torch.ones(block.units, dtype=model.dtype, requires_grad=True) for block in _blocks(model, blocks)]


def _blocks(model: PreTrainedModel, blocks: Sequence[Block] | None) -> Sequence[Block]:
    return describe_model(model).blocks if blocks is None else blocks


def gradients_one_at_a_time(
    model: PreTrainedModel, batch: Batch, blocks: Sequence[Block] | None = None
) -> list[torch.Tensor]:
    """`[examples, units]` per block."""
    rows: list[list[torch.Tensor]] = []
    for example in single_examples(batch):
        gates = ones(model, blocks)
        with scaled(model, gates, blocks):
            loss = model(**example).loss
        rows.append(list(torch.autograd.grad(loss, gates)))
    return [torch.stack(block) for block in zip(*rows, strict=True)]
