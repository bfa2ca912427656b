"""Calibration data: whatever the user has, as batches on the model's device, shared out over processes.

This file is the only one that asks whether the program is distributed.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeGuard, TypeVar, cast

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from .errors import PruningError
from .kept_steps import KeptSteps
from .offloading import device_of
from .processes import add_up, fail_together, told_by_first
from .rows import (
    ADVICE,
    IGNORED,
    LABEL_COLUMNS,
    Collator,
    is_map_style,
    is_row,
    no_argument,
    padding_collator,
    row_batches,
)

Batch = dict[str, Any]

T = TypeVar("T")

# In this order they say how many examples there are: images may come in packed patches.
_COUNTED = ("input_ids", "inputs_embeds", "labels", "input_features", "input_values", "pixel_values")


class CalibrationData:
    """Calibration data as batches of keyword arguments for a model's `forward`.

    Args:
        data: a `datasets.Dataset` (or any sequence) of tokenised rows, a `DataLoader`, or any iterable of batches.
        model: the model they are for; it decides the device and the columns that are kept.
        data_collator: makes a batch of a list of rows; by default tokens and labels are padded to the longest row of
            their batch, with the model's padding token, and images and sound are stacked.
        batch_size: examples per batch where `data` holds rows.
        accelerator: with several processes, every process sees each `num_processes`-th batch.

    Attributes:
        steps: where what is found on the data is kept while a run is unfinished; by default nowhere.

    Raises:
        PruningError: nothing in it, or none of its columns is an argument of the model.
    """

    def __init__(
        self,
        data: Any,
        model: PreTrainedModel,
        *,
        data_collator: Collator | None = None,
        batch_size: int = 32,
        accelerator: Accelerator | None = None,
    ) -> None:
        if data is None:
            raise PruningError("Calibration data is needed: pass a Dataset of tokenised rows, a DataLoader or batches.")
        self.steps = KeptSteps()
        self._accelerator = accelerator
        self._model = model
        self._accepted = set(inspect.signature(model.forward).parameters) - {"self", "kwargs"}
        self._inputs = (model.main_input_name, "inputs_embeds")
        collator = data_collator or padding_collator(model, self._accepted)
        self._batches = self._as_batches(data, collator, batch_size)
        first = next(iter(self._batches), None)
        if first is None:
            raise PruningError("The calibration data is empty; a few hundred to a few thousand examples are needed.")
        self._prepare(first)

    @property
    def processes(self) -> int:
        """How many processes share the data."""
        return self._accelerator.num_processes if self._accelerator is not None else 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that measures and writes."""
        return self._accelerator is None or self._accelerator.is_main_process

    def __iter__(self) -> Iterator[Batch]:
        """This process's batches."""
        rank = self._accelerator.process_index if self._accelerator is not None else 0
        for batch in itertools.islice(self._batches, rank, None, self.processes):
            yield self._prepare(batch)

    def take(self, examples: int | None) -> Iterator[Batch]:
        """This process's batches until `examples` examples have been seen over all processes (None: all of them)."""
        seen = 0
        for batch in self:
            if examples is not None and seen >= examples:
                return
            seen += example_count(batch) * self.processes
            yield batch

    @property
    def batches(self) -> int | None:
        """How many batches this process has; None where the data does not say."""
        try:
            total = len(cast(Sized, self._batches))
        except TypeError:  # a stream, or a DataLoader on one
            return None
        return len(range(self.batch_number(0), total, self.processes))

    def batch_number(self, index: int) -> int:
        """The place among the batches of all processes of this process's batch number `index`."""
        rank = self._accelerator.process_index if self._accelerator is not None else 0
        return index * self.processes + rank

    def first(self) -> Batch:
        """The first batch of all, the same on every process."""
        return self._prepare(next(iter(self._batches)))

    def sequence_length(self, batches: int = 64) -> int | None:
        """Mean number of valid tokens in the text that the model reads, over the first batches, rounded up.

        None for a model that reads images or sound.
        """
        if "input_ids" not in self._inputs:
            return None
        return self._mean_length(valid_tokens, batches) or 1

    def decoder_length(self, batches: int = 64) -> int | None:
        """Mean number of tokens that a decoder sees, where an encoder reads the inputs; None in other models."""
        if not getattr(self._model.config, "is_encoder_decoder", False):
            return None
        return self._mean_length(decoder_tokens, batches)

    def _mean_length(self, positions: Callable[[Batch], torch.Tensor | None], batches: int) -> int | None:
        tokens = examples = 0
        for batch in itertools.islice(self._batches, batches):
            mask = positions(self._prepare(batch))
            if mask is not None:
                tokens, examples = tokens + int(mask.sum()), examples + len(mask)
        return max(1, -(-tokens // examples)) if examples else None

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor summed over all processes (in place; every process must call it in the same order)."""
        if self.processes > 1:
            add_up([tensor])
        return tensor

    def agree(self, action: Callable[[], T]) -> T:
        """What `action` returns; if it fails on one process, all processes fail instead of waiting for each other.

        Raises:
            PruningError: on another process something was raised; what was raised here comes out as it is.
        """
        return action() if self.processes == 1 else fail_together(action)

    def broadcast(self, value: Any) -> Any:
        """Process 0's value, on every process (for decisions that rest on local measurements)."""
        return value if self.processes == 1 else told_by_first(value)

    def _as_batches(self, data: Any, collator: Collator, batch_size: int) -> Iterable[Any]:
        if isinstance(data, Mapping):
            one = any(name in data for name in self._inputs)
            advice = "one batch: pass a list of batches" if one else "no rows and no batches: pass one of its values"
            raise PruningError(
                f"The calibration data is a {type(data).__name__} of {', '.join(map(str, data))}, which is {advice}."
            )
        if isinstance(data, Dataset):
            unused = [name for name in data.column_names if not self._takes(name)]
            if len(unused) == len(data.column_names):
                raise PruningError(no_argument(data.column_names, self._accepted))
            return row_batches(data.remove_columns(unused), collator, batch_size)
        if is_map_style(data) and len(data) and is_row(data[0], self._inputs):
            return row_batches(data, self._without_unused(collator), batch_size)
        if not isinstance(data, Iterable):
            raise PruningError(
                f"Calibration data of type {type(data).__name__} cannot be read: pass a Dataset of tokenised rows, a"
                " DataLoader, or an iterable of batches (dictionaries of tensors)."
            )
        if isinstance(data, Iterator):
            data = list(data)
        if is_row(next(iter(data), None), self._inputs):  # a stream of rows, as `datasets` gives with streaming=True
            return row_batches(list(data), self._without_unused(collator), batch_size)
        return data

    def _without_unused(self, collator: Collator) -> Collator:
        """A collator that gets of tokenised rows what the model takes, as the Trainer's do.

        Rows with nothing of that are for a collator that tokenises.
        """

        def collate(rows: list[Mapping[str, Any]]) -> Any:
            if any(name in rows[0] for name in self._inputs):
                rows = [{name: value for name, value in row.items() if self._takes(name)} for row in rows]
            return collator(rows)

        return collate

    def _takes(self, column: str) -> bool:
        """Whether a column is an input of the model, or holds labels."""
        return LABEL_COLUMNS.get(column, column) in self._accepted

    def _prepare(self, batch: Any) -> Batch:
        if not isinstance(batch, Mapping):
            raise PruningError(
                f"A calibration batch is a {type(batch).__name__}; batches must be dictionaries of tensors, as a"
                " data collator makes them."
            )
        named = {LABEL_COLUMNS.get(key, key): value for key, value in batch.items()}
        device = device_of(self._model)
        kept = {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in named.items()
            if key in self._accepted
        }
        if not any(isinstance(kept.get(name), torch.Tensor) for name in self._inputs):
            raise PruningError(
                f"A calibration batch with the keys {', '.join(map(str, batch)) or '(none)'} holds no tensor named"
                f" {' or '.join(self._inputs)}, which {type(self._model).__name__} reads. {ADVICE}"
            )
        return kept | decoder_inputs(self._model, kept, self._accepted)


def decoder_inputs(model: PreTrainedModel, batch: Batch, accepted: Collection[str]) -> Batch:
    """What a decoder reads, which models make of the labels: so that it is there without the labels, too.

    Args:
        model: any; nothing is made for those that are no encoder-decoders.
        batch: with labels or without.
        accepted: the names of the model's inputs.
    """
    labels = batch.get("labels")
    own = ("decoder_input_ids", "decoder_inputs_embeds")
    generates = getattr(model.config, "is_encoder_decoder", False) and own[0] in accepted
    if not generates or any(batch.get(name) is not None for name in own) or not _are_token_labels(labels):
        return {}
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    return {own[0]: _shifted(labels, model.config) if shift is None else shift(labels=labels)}


def _are_token_labels(labels: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(labels, torch.Tensor) and labels.dim() == 2 and not labels.is_floating_point()


def _shifted(labels: torch.Tensor, config: Any) -> torch.Tensor:
    """Labels as a decoder reads them: each token once the one before it was written."""
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, config.pad_token_id or 0)


def example_count(batch: Batch) -> int:
    """Number of examples in a batch: the first dimension of its tokens or labels, or else of its first tensor."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and value.dim()}
    return len(next((tensors[name] for name in _COUNTED if name in tensors), next(iter(tensors.values()))))


def valid_tokens(batch: Batch) -> torch.Tensor:
    """Which positions are not padding: bool `[rows, length]`.

    Multiple choice has a row for every choice. Without an attention mask everything counts.
    """
    mask = batch.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() >= 2:
        return mask.reshape(-1, mask.shape[-1]).bool()
    ids = batch.get("input_ids")
    if isinstance(ids, torch.Tensor):
        return torch.ones_like(ids.reshape(-1, ids.shape[-1]), dtype=torch.bool)
    return torch.ones(example_count(batch), 1, dtype=torch.bool)


def decoder_tokens(batch: Batch) -> torch.Tensor | None:
    """Which positions of the decoder's own sequence count, bool `[rows, length]`; None where the batch has none."""
    mask = batch.get("decoder_attention_mask")
    if isinstance(mask, torch.Tensor):
        return mask.bool()
    labels = batch.get("labels")
    if _are_token_labels(labels):
        return labels != IGNORED
    ids = batch.get("decoder_input_ids")
    return torch.ones_like(ids, dtype=torch.bool) if isinstance(ids, torch.Tensor) else None


def predicted_tokens(model: PreTrainedModel, batch: Batch) -> torch.Tensor | None:
    """Which positions of a model's predictions count; of an encoder-decoder those are of the decoder's sequence."""
    return decoder_tokens(batch) if getattr(model.config, "is_encoder_decoder", False) else valid_tokens(batch)


def without_labels(batch: Batch) -> Batch:
    """The batch without what only a loss needs."""
    return {
        key: value
        for key, value in batch.items()
        if "label" not in key and key not in ("start_positions", "end_positions")
    }
