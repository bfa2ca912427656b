"""Attention matrices of a frozen model, layer by layer: only one block's are in memory at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from ...anatomy import AttentionLayout, Block, describe_model
from ...calibration import Batch, valid_tokens, without_labels
from ...errors import PruningError, UnsupportedModelError
from ...scores import evaluating

Receiver = Callable[[Block, torch.Tensor], None]


def attention_maps(model: PreTrainedModel, batch: Batch, size: int = 128) -> dict[str, torch.Tensor]:
    """The attention maps of all blocks at once, for pictures of some few examples.

    Args:
        model: a supported model with one list of layers.
        batch: inputs on the model's device.
        size: side of the maps.

    Returns:
        `[examples, heads, size, size]` by block key; see `fit_maps`.

    Raises:
        PruningError: as `each_attention_map`.
    """
    maps: dict[str, torch.Tensor] = {}
    each_attention_map(model, describe_model(model).attentions, batch, size, lambda b, m: maps.update({b.key: m}))
    return maps


@torch.no_grad()
def each_attention_map(
    model: PreTrainedModel, blocks: Sequence[Block], batch: Batch, size: int, receive: Receiver
) -> None:
    """Runs a model in evaluation mode and hands out each block's attention probabilities as they are made.

    Whatever attention the model uses, it uses the eager one meanwhile: no other one makes the probabilities.

    Args:
        model: a supported model with one list of layers.
        blocks: its attention blocks that are looked at.
        batch: inputs on the model's device.
        size: side of the maps.
        receive: is called with a block and its maps `[examples, heads, size, size]`, see `fit_maps`; more than once
            where a layer runs more than once. Maps that it does not keep are freed.

    Raises:
        UnsupportedModelError: the model has an encoder and a decoder.
        PruningError: a block does not show its attention.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} has an encoder and a decoder, but the meta-pruner scores the self-attention of one"
            " list of layers. Use another strategy that takes heads=…, or prune an encoder."
        )
    shown: set[str] = set()

    def show(block: Block, probabilities: torch.Tensor) -> None:
        shown.add(block.key)
        rows, _, height, width = probabilities.shape
        queries, keys = _positions(batch, rows, height), _positions(batch, rows, width)
        receive(block, fit_maps(probabilities, queries, keys, size))

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(eager_attention(model))
        for block in blocks:
            for handle in _watch(model, block, show):
                stack.callback(handle.remove)
        model(**without_labels(batch))
    hidden = [block for block in blocks if block.key not in shown]
    if hidden:
        raise _cannot_show(model, hidden[0])


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """The attention that makes its probabilities, as far as the model can be switched; put back at the end."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    for config in configs:  # the list grows by the parts of configs that it goes through
        configs += [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]
    before = [(config, config._attn_implementation) for config in configs]
    try:
        # A model that cannot be switched says so in a warning; it may show its attention all the same.
        if any(name != "eager" for _, name in before):
            model.set_attn_implementation("eager")
        yield
    finally:
        for config, name in before:
            config._attn_implementation = {"": name}  # of this config alone, not of its parts


def fit_maps(maps: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, size: int) -> torch.Tensor:
    """Attention maps without their padding, as squares of one size.

    An example's map is what its own tokens say to each other, so it depends neither on how its batch was padded nor on
    which side. Maps of up to `size` tokens are filled up with zeros; longer ones are averaged down to `size` (the paper
    downsizes them, section 4.1).

    Args:
        maps: probabilities `[examples, heads, queries, keys]`.
        queries, keys: which positions are no padding: bool `[examples, queries]` and `[examples, keys]`.
        size: side of the result.

    Returns:
        `[examples, heads, size, size]`.
    """
    queries, keys = queries.to(maps.device), keys.to(maps.device)
    fitted = maps.new_zeros(*maps.shape[:2], size, size)
    for index, own in enumerate(maps):
        own = own[:, queries[index]][:, :, keys[index]]
        height, width = (min(length, size) for length in own.shape[1:])
        if (height, width) != own.shape[1:]:
            own = functional.adaptive_avg_pool2d(own, (height, width))
        fitted[index, :, :height, :width] = own
    return fitted


def _positions(batch: Batch, rows: int, length: int) -> torch.Tensor:
    """Which of `length` positions are no padding; all of them where they are not those of the text."""
    valid = valid_tokens(batch)
    return valid if valid.shape == (rows, length) else torch.ones(rows, length, dtype=torch.bool)


def _watch(model: PreTrainedModel, block: Block, show: Receiver) -> Iterator[Any]:
    """Hooks on the module that makes a block's probabilities."""
    layout = block.layout
    assert isinstance(layout, AttentionLayout)
    core = model.get_submodule(block.layer).get_submodule(layout.core)
    if "output_attentions" in inspect.signature(core.forward).parameters:
        yield core.register_forward_pre_hook(_ask_for_attention, with_kwargs=True)
    yield core.register_forward_hook(partial(_hand_over, block, show))


def _ask_for_attention(core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Some modules return their probabilities only when they are asked; the argument may come by place or by name."""
    bound = inspect.signature(core.forward).bind(*args, **kwargs)
    bound.arguments["output_attentions"] = True
    return bound.args, bound.kwargs


def _hand_over(block: Block, show: Receiver, core: nn.Module, args: Any, output: Any) -> None:
    """Finds the probabilities in what the module returns: last, because position biases look alike and come before."""
    heads = block.units * block.heads_per_unit
    returned = output if isinstance(output, tuple) else (output,)
    found = [item for item in returned if isinstance(item, torch.Tensor) and item.dim() == 4 and item.shape[1] == heads]
    if found:
        show(block, found[-1])


def _cannot_show(model: PreTrainedModel, block: Block) -> PruningError:
    return PruningError(
        f"{block.key} of {type(model).__name__} shows no attention probabilities, not even with"
        " attn_implementation='eager', so the meta-pruner cannot score its heads. Name it in exclude_modules, or use"
        " another strategy that takes heads=…."
    )
