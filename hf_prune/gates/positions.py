"""Which positions of a batch count, and which example they belong to: what a hook deep in a model does not get to know.

The mask that reaches a layer has been made into something for the attention by then, or into nothing. So the modules
around a list of layers are watched: the mask of padding that they are called with is the one of these layers, the
encoder's in an encoder and the decoder's in a decoder, whose cross-attention puts out the decoder's positions, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..anatomy.holders import models_around
from ..errors import PruningError


@dataclass
class Positions:
    """The batch that runs through a list of layers.

    Attributes:
        examples: how many examples it has; None as long as that is unknown.
        mask: bool `[examples, tokens]`, False for padding; None if all positions count.
    """

    examples: int | None = None
    mask: torch.Tensor | None = None

    def in_groups(self, rows: torch.Tensor, reduction: Literal["batch", "example"]) -> torch.Tensor:
        """Brings values of each position into groups, with 0 at padding.

        Args:
            rows: `[*positions, columns]`, at least 0. Positions are `[examples, tokens]` or both in one axis; others
                (windows of an image, one token of a text that is generated) do not fit the mask, and all of them count.
            reduction: "batch" for one group, "example" for one per example.

        Returns:
            `[groups, positions of a group, columns]`.

        Raises:
            PruningError: the first axis does not keep examples apart.
        """
        places = rows.shape[:-1]
        if self.mask is not None and places in (self.mask.shape, (self.mask.numel(),)):
            mask = self.mask.to(rows.device).reshape(*places, 1)
            rows = rows.masked_fill(~mask, 0)
        if reduction == "batch":
            return rows.reshape(1, -1, rows.shape[-1])
        examples = self.examples or places[0]
        if places[0] % examples:
            raise PruningError(
                f"Values of shape {tuple(rows.shape)} do not keep {examples} examples apart in their first axis. Use"
                " reduction='batch'."
            )
        return rows.reshape(examples, -1, rows.shape[-1])


def watch_positions(
    model: PreTrainedModel, stacks: Iterable[str]
) -> tuple[dict[str, Positions], list[RemovableHandle]]:
    """Follows what lists of layers are run on, from one forward pass to the next.

    Args:
        model: any Transformers model.
        stacks: paths of lists of layers, from the root.

    Returns:
        The positions of every list, which hold what its last call brought, and the hooks that see to it.
    """
    found = {stack: Positions() for stack in stacks}
    inside: dict[str, list[str]] = {}
    for stack in found:
        innermost, _ = list(models_around(model, stack))[-1]
        inside.setdefault(innermost, []).append(stack)
    handles = []
    for path, members in inside.items():
        module = model.get_submodule(path)
        # Of an encoder and a decoder in one model the mask belongs to the encoder alone.
        shared = len(members) > 1 and getattr(module.config, "is_encoder_decoder", False)
        readers = {path: _Reader.of(module, [found[stack] for stack in members], first=True, masked=not shared)}
        for stack in members:
            for inner in _modules_between(path, stack):
                reader = readers.setdefault(inner, _Reader.of(model.get_submodule(inner), []))
                reader.positions.append(found[stack])
        for place, reader in readers.items():
            handles.append(model.get_submodule(place).register_forward_pre_hook(reader, with_kwargs=True))
    return found, handles


@dataclass
class _Reader:
    """A forward pre-hook on a module around layers, which notes what it is called with.

    The whole model around them begins a batch. A module inside it may be given a mask of its own: that of the frames
    which a speech model has made of the samples.
    """

    names: Sequence[str]
    positions: list[Positions]
    first: bool = False
    masked: bool = True

    @classmethod
    def of(cls, module: nn.Module, positions: list[Positions], **settings: bool) -> _Reader:
        return cls(tuple(inspect.signature(module.forward).parameters), positions, **settings)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        mask = _padding_mask(arguments) if self.masked else None
        for positions in self.positions:
            if self.first:
                positions.examples, positions.mask = _example_count(arguments), mask
            elif mask is not None:
                positions.mask = mask


def _padding_mask(arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """The mask among a call's arguments, unless it says which position sees which."""
    mask = arguments.get("attention_mask")
    return mask.bool() if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


def _example_count(arguments: Mapping[str, Any]) -> int | None:
    tensors = (value for value in arguments.values() if isinstance(value, torch.Tensor) and value.dim() > 1)
    return next(map(len, tensors), None)


def _modules_between(path: str, stack: str) -> list[str]:
    """The paths below `path` and above `stack`, the outer ones first."""
    above = accumulate(stack.split("."), "{}.{}".format)
    return [inner for inner in above if len(path) < len(inner) < len(stack)]
