"""Forward passes that start in the middle of a model, from hidden states that are known already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy.layer_calls import Forward, LayerCall, Segment, as_returned, replaced_forwards, run_plainly
from ..calibration import Batch, example_count

# The key under which a batch carries the hidden states that it starts from, a row for each example.
START = "hf_prune_start"

# Largest accepted difference between the outputs of a resumed and of a whole pass, relative and absolute.
AGREEMENT = (1e-3, 1e-5)


def starting_from(batch: Batch, hidden: torch.Tensor) -> Batch:
    """The batch with hidden states to start from; as it is where they have no rows of each example's own.

    Args:
        batch: arguments of the model's `forward`.
        hidden: `[rows, ...]`, with the rows of an example next to each other.
    """
    examples = example_count(batch)
    return batch if len(hidden) % examples else {**batch, START: hidden.unflatten(0, (examples, -1))}


@contextmanager
def resumed(model: PreTrainedModel, segment: Segment, layer: str) -> Iterator[None]:
    """Within it, `model(**starting_from(batch, hidden))` enters `layer` with `hidden`.

    What is before the segment runs as ever; the segment's layers before `layer` do not. A batch without hidden states
    runs whole.

    Args:
        model: the model.
        segment: from `find_segments`, with `values`.
        layer: path of a layer of the segment, but not the first.
    """
    before = segment.layers[: segment.layers.index(layer)]
    values = segment.values
    assert before
    assert values is not None
    start: list[torch.Tensor | None] = [None]

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        held = kwargs.get(START)
        start[0] = None if held is None else held.flatten(0, 1)
        return args, {name: value for name, value in kwargs.items() if name != START}

    def wrap(name: str, own: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if start[0] is None:
                return own(*args, **kwargs)
            entering = LayerCall.of(name, args, kwargs)[1]
            return as_returned(start[0] if name == before[-1] else entering, values)

        return forward

    handle = model.register_forward_pre_hook(take, with_kwargs=True)
    try:
        with replaced_forwards(model, before, wrap):
            yield
    finally:
        handle.remove()


def resumes_exactly(model: PreTrainedModel, segment: Segment, inputs: Mapping[str, Any]) -> bool:
    """Whether a pass that is resumed in a segment gives the model's outputs: seen by resuming at its last layer.

    It does not where layers hand each other more than hidden states, and where the outputs depend on the hidden states
    between layers as well.

    Args:
        model: the model, in evaluation mode.
        segment: from `find_segments`.
        inputs: keyword arguments of `forward`, without labels.
    """
    if segment.values is None or len(segment.layers) == 1:
        return False
    entered: list[torch.Tensor] = []

    def wrap(name: str, own: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            entered.append(LayerCall.of(name, args, kwargs)[1])
            return own(*args, **kwargs)

        return forward

    with torch.no_grad():
        with replaced_forwards(model, segment.layers[-1:], wrap):
            whole = run_plainly(model, inputs)
        with resumed(model, segment, segment.layers[-1]):
            again = run_plainly(model, starting_from(dict(inputs), entered[0]))
    return len(whole) == len(again) and all(map(_agree, whole, again))


def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    relative, absolute = AGREEMENT
    return one.shape == other.shape and torch.allclose(one, other, rtol=relative, atol=absolute, equal_nan=True)
