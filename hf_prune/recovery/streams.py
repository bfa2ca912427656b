"""Two residual streams through a segment of layers: the dense one and that of the model being cut.

Layers are called with the arguments that the model itself passes them, so no modelling code is repeated here. The cut
happens on a copy of one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import UndoLog
from ..anatomy.layer_calls import LayerCall, Segment, positions_read, record_calls
from ..calibration import Batch, decoder_tokens, valid_tokens, without_labels
from ..offloading import tensor_store


@dataclass
class Stream:
    """One calibration batch on its way through a segment.

    Attributes:
        number: the batch's place among this process's batches.
        kept: what is large: the hidden states, see `dense` and `pruned`, and the targets of the current layer's blocks,
            by block key. Of an offloaded model it is in files.
        dense_calls, pruned_calls: how each model calls the layers that are still to come.
        valid: positions that are not padding, bool `[rows, length]`.
        read: those of them whose last hidden state the rest of the model depends on.
    """

    number: int
    kept: MutableMapping[str, torch.Tensor]
    dense_calls: list[LayerCall]
    pruned_calls: list[LayerCall]
    valid: torch.Tensor
    read: torch.Tensor

    @property
    def dense(self) -> torch.Tensor:
        """Hidden states of the original model, `[rows, length, hidden]`."""
        return self.kept["dense"]

    @dense.setter
    def dense(self, hidden: torch.Tensor) -> None:
        self.kept["dense"] = hidden

    @property
    def pruned(self) -> torch.Tensor:
        """Hidden states of the model as cut so far."""
        return self.kept["pruned"]

    @pruned.setter
    def pruned(self, hidden: torch.Tensor) -> None:
        self.kept["pruned"] = hidden

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
    streams = []
    everything = False  # once all positions matter, they do in every batch
    for number, batch in enumerate(batches):
        inputs = without_labels(batch)
        dense = pruned = record_calls(model, segment, inputs)
        if cut and not segment.shared:
            with swapped(cuts):
                pruned = record_calls(model, segment, inputs)
        for place, ((hidden, calls), (cut_hidden, cut_calls)) in enumerate(zip(dense, pruned, strict=True), 1):
            valid = read = valid_positions(model, segment.layers[0], batch, hidden)
            if place == len(dense) and not everything:
                read = valid & _positions_read(model, segment, inputs, valid)
                everything = bool((read == valid).all())
            kept = tensor_store(model)
            kept.update({"dense": hidden, "pruned": cut_hidden})
            streams.append(Stream(number, kept, list(calls), list(cut_calls), valid, read))
    return streams


def _positions_read(model: PreTrainedModel, segment: Segment, inputs: Batch, valid: torch.Tensor) -> torch.Tensor:
    """The positions of the segment's output that matter: all where that cannot be told in the shape of `valid`."""
    seen = positions_read(model, segment, inputs)
    return seen.to(valid.device) if seen.shape == valid.shape else torch.ones_like(valid)


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


@contextmanager
def whole_sequences(model: nn.Module) -> Iterator[None]:
    """Feed-forward blocks see the whole sequence at once; chunks would only split what is summed up anyway."""
    chunked = [module for module in model.modules() if getattr(module, "chunk_size_feed_forward", 0)]
    sizes = [module.chunk_size_feed_forward for module in chunked]
    for module in chunked:
        module.chunk_size_feed_forward = 0  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, size in zip(chunked, sizes, strict=True):
            module.chunk_size_feed_forward = size


def counted_rows(values: torch.Tensor, stream: Stream) -> torch.Tensor:
    """The positions of `[rows, length, size]` (or the same, flattened) that count, as `[positions, size]`.

    All rows of values that are laid out in another way (windows of an image). Always a copy, since modelling code may
    add to its tensors in place, in float32 or better.
    """
    flat, counted = values.flatten(0, -2), stream.counted.to(values.device)
    matches = values.shape[:-1] == counted.shape or (values.dim() == 2 and len(values) == counted.numel())
    rows = flat[counted.flatten()] if matches else flat.clone()
    return rows if rows.dtype == torch.float64 else rows.float()
