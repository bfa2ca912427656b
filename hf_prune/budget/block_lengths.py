"""Counts what goes through a model's blocks while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import AttentionLayout, Block, ModelAnatomy
from ..anatomy.undisturbed import undisturbed
from ..calibration import Batch
from ..errors import PruningError

_KEYS = ("key", "value", "key+value")


@dataclass(frozen=True)
class BlockLength:
    """What one block sees of one example.

    Attributes:
        queries: tokens that go through the block.
        keys: tokens that its keys and values are made of: another stack's in cross-attention.
        context: keys that each query attends to; fewer than all of them in windows.
        cross: whether keys and values are made of something else than the queries.
    """

    queries: int
    keys: int
    context: int
    cross: bool = False

    @classmethod
    def same(cls, tokens: int) -> BlockLength:
        """A block in which everything sees `tokens` tokens."""
        return cls(tokens, tokens, tokens)


def measured_lengths(model: PreTrainedModel, anatomy: ModelAnatomy, example: Batch) -> dict[str, BlockLength]:
    """Runs a model on one example and counts; blocks that do not run see what the others of their layers see.

    Args:
        model: a supported model.
        anatomy: from `describe_model(model)`.
        example: a batch of one example.

    Returns:
        One entry for each block, by key.

    Raises:
        PruningError: the model does not run on the example.
    """
    seen: dict[str, list[torch.Tensor]] = {}
    with ExitStack() as hooks, undisturbed(model), torch.no_grad():
        for block in anatomy.blocks:
            for path in _watched(block):
                module = model.get_submodule(block.layer).get_submodule(path)
                hooks.enter_context(_watching(module, seen.setdefault(f"{block.key} {path}", [])))
        try:
            model(**example)
        except Exception as error:  # a model fails on a wrong example in any way
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise PruningError(f"{type(model).__name__} could not be run on one example ({problem}).") from error
    found = {block.key: length for block in anatomy.blocks if (length := _length(block, seen)) is not None}
    usual = {block.stack: found[block.key] for block in reversed(anatomy.blocks) if block.key in found}
    whole = next(iter(found.values()), BlockLength.same(1))
    return {
        block.key: found.get(block.key) or BlockLength.same(usual.get(block.stack, whole).queries)
        for block in anatomy.blocks
    }


def _watched(block: Block) -> list[str]:
    """The projections that tell a block's lengths: the output, and those that make queries and keys."""
    if block.output.expert is not None or not block.units:
        return []
    layout = block.layout
    inputs = list(layout.inputs) if isinstance(layout, AttentionLayout) else []
    return [*inputs, block.output.path]


@contextmanager
def _watching(module: nn.Module, store: list[torch.Tensor]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda module, args: store.append(args[0]))
    try:
        yield
    finally:
        handle.remove()


def _length(block: Block, seen: dict[str, list[torch.Tensor]]) -> BlockLength | None:
    """A block's lengths in the first of its runs."""
    entered = {path: seen[f"{block.key} {path}"][0] for path in _watched(block) if seen[f"{block.key} {path}"]}
    if block.output.path not in entered:
        return None
    queries = _tokens(entered[block.output.path])
    layout = block.layout
    if not isinstance(layout, AttentionLayout):
        return BlockLength.same(queries)
    makers = {makes: entered[path] for path, makes in layout.inputs.items() if path in entered}
    keys: Any = next((makers[makes] for makes in _KEYS if makes in makers), next(iter(makers.values())))
    context = keys.shape[-2] if keys.dim() > 2 else _tokens(keys)
    return BlockLength(queries, _tokens(keys), context, "query" in makers and makers["query"] is not keys)


def _tokens(values: torch.Tensor) -> int:
    return values.shape[:-1].numel()
