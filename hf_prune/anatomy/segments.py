"""Which layers of a model run directly one after the other, seen in a forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from .layer_calls import Forward, LayerCall, Segment, hidden_of, record_calls, replaced_forwards, run_model


def find_segments(model: PreTrainedModel, layers: Sequence[str], inputs: Mapping[str, Any]) -> tuple[Segment, ...]:
    """Runs a model once and sees which layers follow each other directly.

    Whatever happens between two layers (downsampling, the way from an encoder to a decoder, a second tower) starts a
    new segment.

    Args:
        model: the model, in evaluation mode.
        layers: paths of its layers.
        inputs: keyword arguments of `forward`, without labels.

    Returns:
        The segments in the order in which they run; layers that this input does not reach are in none.
    """
    events = _observe(model, layers, inputs)
    counts = Counter(event.call.layer for event in events)
    groups: list[list[_Event]] = []
    alone: dict[str, list[_Event]] = {}
    for event in events:
        name = event.call.layer
        if counts[name] > 1:
            if name not in alone:
                alone[name] = []
                groups.append(alone[name])
            alone[name].append(event)
        elif event.follows and groups and counts[groups[-1][-1].call.layer] == 1:
            groups[-1].append(event)
        else:
            groups.append([event])
    return tuple(_segment(model, group, inputs) for group in groups)


@dataclass(frozen=True)
class _Event:
    """One call: whether its hidden states are what the previous call returned, and how many values it returned."""

    call: LayerCall
    follows: bool
    values: int | None


def _observe(model: PreTrainedModel, layers: Sequence[str], inputs: Mapping[str, Any]) -> list[_Event]:
    events: list[_Event] = []
    last: list[tuple[torch.Tensor, int]] = []

    def wrap(name: str, own: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call, hidden = LayerCall.of(name, args, kwargs)
            follows = bool(last) and _is_same(hidden, last[0][0]) and _version(hidden) == last[0][1]
            output = own(*args, **kwargs)
            values = 0 if isinstance(output, torch.Tensor) else len(output) if type(output) is tuple else None
            events.append(_Event(call, follows, values))
            last[:] = [(hidden_of(output), _version(hidden_of(output)))]
            return output

        return forward

    with replaced_forwards(model, layers, wrap):
        run_model(model, inputs)
    return events


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (
        one.shape == other.shape and one.stride() == other.stride() and one.data_ptr() == other.data_ptr()
    )


def _version(tensor: torch.Tensor) -> int:
    """A number that changes whenever values are written into a tensor."""
    return 0 if tensor.is_inference() else tensor._version


def _segment(model: PreTrainedModel, events: Sequence[_Event], inputs: Mapping[str, Any]) -> Segment:
    segment = Segment(tuple(dict.fromkeys(event.call.layer for event in events)), len(events))
    values = {event.values for event in events}
    if segment.shared or len(values) > 1:
        return segment
    skipping = replace(segment, values=values.pop())
    try:
        [(_, calls)] = record_calls(model, skipping, inputs)
    except Exception:  # modelling code that needs what its layers compute fails in any way it likes
        return segment
    same = all(_agree(event.call.args, call.args) for event, call in zip(events, calls, strict=True))
    same = same and all(_agree(event.call.kwargs, call.kwargs) for event, call in zip(events, calls, strict=True))
    return skipping if same else segment


def _agree(one: Any, other: Any) -> bool:
    """Whether two arguments have the same values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_agree, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_agree(value, other[key]) for key, value in one.items())
    return one is other or bool(one == other)
