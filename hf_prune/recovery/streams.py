"""Two residual streams through a segment of layers: the dense one and that of the model being cut.

Layers are called with the arguments that the model itself passes them, so no modelling code is repeated here. The cut
happens on a copy of one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..anatomy import UndoLog
from ..anatomy.layer_calls import LayerCall, Segment, positions_read, record_calls
from ..calibration import Batch, decoder_tokens, valid_tokens, without_labels


@dataclass
class Stream:
    """One calibration batch on its way through a segment.

    Attributes:
        number: the batch's place among this process's batches.
        dense: hidden states of the original model, `[rows, length, hidden]`.
        pruned: hidden states of the model as cut so far.
        dense_calls, pruned_calls: how each model calls the layers that are still to come.
        valid: positions that are not padding, bool `[rows, length]`.
        read: those of them whose last hidden state the rest of the model depends on.
    """

    number: int
    dense: torch.Tensor
    pruned: torch.Tensor
    dense_calls: list[LayerCall]
    pruned_calls: list[LayerCall]
    valid: torch.Tensor
    read: torch.Tensor

    @property
    def counted(self) -> torch.Tensor:
        """The positions on which the current layer's output matters: after the last layer, those that are read."""
        return self.valid if len(self.dense_calls) > 1 else self.read


def open_streams(
    model: PreTrainedModel, segment: Segment, batches: Sequence[Batch], cuts: UndoLog, cut: bool
) -> list[Stream]:
    """Records how the dense model and the one that is cut so far enter a segment.

    Args:
        model: the dense model; it is as it was afterwards.
        segment: from `find_segments`.
        batches: this process's calibration batches.
        cuts: what earlier segments have become, taken out of the model.
        cut: whether there is anything in it; else both streams start alike.

    Returns:
        A stream per batch; where one layer runs several times, one for every run, which starts from what the dense
        model has there.
    """
    inputs = [without_labels(batch) for batch in batches]
    dense = [record_calls(model, segment, item) for item in inputs]
    pruned = dense
    if cut and not segment.shared:
        with swapped(cuts):
            pruned = [record_calls(model, segment, item) for item in inputs]
    reads = _positions_read(model, segment, batches, inputs, [entries[-1][0] for entries in dense])
    streams = []
    for number, batch in enumerate(batches):
        pairs = list(zip(dense[number], pruned[number], strict=True))
        for (hidden, calls), (cut_hidden, cut_calls) in pairs:
            valid = valid_positions(model, segment.layers[0], batch, hidden)
            last = calls is pairs[-1][0][1]
            read = valid & reads[number] if last else valid
            streams.append(Stream(number, hidden, cut_hidden, list(calls), list(cut_calls), valid, read))
    return streams


def _positions_read(
    model: PreTrainedModel,
    segment: Segment,
    batches: Sequence[Batch],
    inputs: Sequence[Batch],
    entered: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """The positions of the segment's output that matter, per batch; once all of them do, they do in every batch."""
    found: list[torch.Tensor] = []
    everything = False
    for batch, item, hidden in zip(batches, inputs, entered, strict=True):
        read = torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
        if not everything:
            seen = positions_read(model, segment, item)
            read = seen if seen.shape == read.shape else read
            everything = bool(read[valid_positions(model, segment.layers[0], batch, hidden)].all())
        found.append(read)
    return found


def few_examples(batch: Batch) -> Batch:
    """Two examples of a batch: enough to see what a model does; all of it where not every tensor has a row for each."""
    sizes = {len(value) if value.dim() else 0 for value in batch.values() if isinstance(value, torch.Tensor)}
    if len(sizes) != 1:
        return batch
    return {name: value[:2] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def valid_positions(model: PreTrainedModel, layer: str, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
    """Which positions of a layer's hidden states are not padding; all of them where the batch does not say."""
    decodes = getattr(model.config, "is_encoder_decoder", False) and "decoder" in layer.split(".")
    mask = decoder_tokens(batch) if decodes else valid_tokens(batch)
    if mask is None or mask.shape != hidden.shape[:-1]:
        return torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
    return mask.to(hidden.device)


@contextmanager
def swapped(cuts: UndoLog) -> Iterator[None]:
    """What `cuts` holds changes places with what the model has."""
    cuts.swap()
    try:
        yield
    finally:
        cuts.swap()


def counted_rows(values: torch.Tensor, stream: Stream) -> torch.Tensor:
    """The positions of `[rows, length, size]` (or the same, flattened) that count, as `[positions, size]`.

    All rows of values that are laid out in another way (windows of an image). Always a copy, since modelling code may
    add to its tensors in place, in float32 or better.
    """
    flat, counted = values.flatten(0, -2), stream.counted
    matches = values.shape[:-1] == counted.shape or (values.dim() == 2 and len(values) == counted.numel())
    rows = flat[counted.flatten()] if matches else flat.clone()
    return rows if rows.dtype == torch.float64 else rows.float()
