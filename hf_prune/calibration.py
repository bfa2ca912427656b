"""Calibration data: whatever the user has, as batches on the model's device, shared out over processes.

This file is the only one that asks whether the program is distributed.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from .errors import PruningError

Batch = dict[str, Any]
Collator = Callable[[list[Any]], Mapping[str, Any]]

T = TypeVar("T")

_LABEL_COLUMNS = {"label": "labels", "label_ids": "labels"}


class CalibrationData:
    """Calibration data as batches of keyword arguments for a model's `forward`.

    Args:
        data: a `datasets.Dataset` (or any sequence) of tokenised rows, a `DataLoader`, or any iterable of batches.
        model: the model they are for; it decides the device and the columns that are kept.
        data_collator: makes a batch of a list of rows; by default rows are padded to the longest of their batch
            with the model's padding token.
        batch_size: examples per batch where `data` holds rows.
        accelerator: with several processes, every process sees each `num_processes`-th batch.

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
        self._accelerator = accelerator
        self._model = model
        self._accepted = set(inspect.signature(model.forward).parameters) - {"self", "kwargs"}
        self._inputs = (model.main_input_name, "inputs_embeds")
        collator = data_collator or _padding_collator(model, self._accepted)
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

    def sequence_length(self, batches: int = 64) -> int:
        """Mean number of valid tokens per example over the first batches, rounded up; at least 1."""
        tokens = examples = 0
        for batch in itertools.islice(self._batches, batches):
            mask = valid_tokens(self._prepare(batch))
            tokens, examples = tokens + int(mask.sum()), examples + len(mask)
        return max(1, -(-tokens // max(1, examples)))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor summed over all processes (in place; every process must call it in the same order)."""
        if self.processes > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def agree(self, action: Callable[[], T]) -> T:
        """What `action` returns; if it fails on one process, all processes fail instead of waiting for each other.

        Raises:
            PruningError: here, or on another process.
        """
        if self.processes == 1:
            return action()
        error: PruningError | None = None
        try:
            value = action()
        except PruningError as failure:
            error = failure
        messages: list[str | None] = [None] * self.processes
        torch.distributed.all_gather_object(messages, None if error is None else str(error))
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise PruningError(f"Process {rank} failed: {message}")
        return value

    def broadcast(self, value: Any) -> Any:
        """Process 0's value, on every process (for decisions that rest on local measurements)."""
        if self.processes == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def _as_batches(self, data: Any, collator: Collator, batch_size: int) -> Iterable[Any]:
        if isinstance(data, Dataset):
            unused = [name for name in data.column_names if _LABEL_COLUMNS.get(name, name) not in self._accepted]
            if len(unused) == len(data.column_names):
                raise PruningError(_no_argument(data.column_names, self._accepted))
            return _row_batches(data.remove_columns(unused), collator, batch_size)
        if _is_map_style(data) and len(data) and _is_row(data[0]):
            return _row_batches(data, collator, batch_size)
        if not isinstance(data, Iterable):
            raise PruningError(
                f"Calibration data of type {type(data).__name__} cannot be read: pass a Dataset of tokenised rows, a"
                " DataLoader, or an iterable of batches (dictionaries of tensors)."
            )
        if isinstance(data, Iterator):
            data = list(data)
        if _is_row(next(iter(data), None)):  # a stream of rows, as `datasets` gives with streaming=True
            return _row_batches(list(data), collator, batch_size)
        return data

    def _prepare(self, batch: Any) -> Batch:
        if not isinstance(batch, Mapping):
            raise PruningError(
                f"A calibration batch is a {type(batch).__name__}; batches must be dictionaries of tensors, as a"
                " data collator makes them."
            )
        named = {_LABEL_COLUMNS.get(key, key): value for key, value in batch.items()}
        kept = {
            key: value.to(self._model.device) if isinstance(value, torch.Tensor) else value
            for key, value in named.items()
            if key in self._accepted
        }
        if not any(isinstance(kept.get(name), torch.Tensor) for name in self._inputs):
            raise PruningError(
                f"A calibration batch with the keys {', '.join(map(str, batch)) or '(none)'} holds no tensor named"
                f" {' or '.join(self._inputs)}, which {type(self._model).__name__} reads. Tokenise the data first."
            )
        return kept


def example_count(batch: Batch) -> int:
    """Number of examples in a batch: the common first dimension."""
    return next(len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.dim())


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


def without_labels(batch: Batch) -> Batch:
    """The batch without what only a loss needs."""
    return {
        key: value
        for key, value in batch.items()
        if "label" not in key and key not in ("start_positions", "end_positions")
    }


def _no_argument(columns: Iterable[str], accepted: Collection[str]) -> str:
    return (
        f"None of the calibration data's columns ({', '.join(columns) or 'none'}) is an argument of the model"
        f" ({', '.join(sorted(accepted))}). Tokenise the data first."
    )


def _row_batches(rows: Any, collator: Collator, batch_size: int) -> DataLoader[Any]:
    """Batches of rows of similar length, in a fixed random order.

    Statistics over examples do not depend on who shares a batch with whom, but the time spent on padding does; and
    the first batches are to be a fair sample of all.
    """
    lengths = _lengths(rows)
    order = sorted(range(len(rows)), key=lengths.__getitem__) if lengths else list(range(len(rows)))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    shuffled = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    return DataLoader(rows, batch_sampler=[batches[index] for index in shuffled], collate_fn=collator)


def _lengths(rows: Any) -> list[int] | None:
    """Tokens per row, or None where rows hold no token ids."""
    if isinstance(rows, Dataset):
        return [len(ids) for ids in rows["input_ids"]] if "input_ids" in rows.column_names else None
    if not len(rows) or "input_ids" not in rows[0]:
        return None
    return [len(rows[index]["input_ids"]) for index in range(len(rows))]


def _is_map_style(data: Any) -> bool:
    """Whether items are read by their number: a list, or a PyTorch `Dataset` of the user's own."""
    return isinstance(data, Sized) and hasattr(data, "__getitem__") and not isinstance(data, (Mapping, str))


def _is_row(item: Any) -> bool:
    """A row holds plain values or 1-D tensors; a batch holds tensors of two dimensions or more."""
    if not isinstance(item, Mapping):
        return False
    tensors = [value for value in item.values() if isinstance(value, torch.Tensor)]
    return not tensors or (all(value.dim() < 2 for value in tensors) and "input_ids" in item)


def _padding_collator(model: PreTrainedModel, accepted: Collection[str]) -> Collator:
    """Pads ragged rows to the longest of their batch, as the usual collators do, with what the config knows."""
    pad_token = getattr(model.config, "pad_token_id", None) or 0
    fill = {"input_ids": pad_token, "labels": -100}

    def collate(rows: list[Mapping[str, Any]]) -> Batch:
        batch: Batch = {}
        for name in rows[0]:
            target = _LABEL_COLUMNS.get(name, name)
            if target not in accepted:
                continue
            values = [torch.as_tensor(row[name]) for row in rows]
            if values[0].dim() == 1 and len({len(value) for value in values}) > 1:
                padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill.get(target, 0))
                batch[target] = padded
            else:
                batch[target] = torch.stack(values)
        if not batch:
            raise PruningError(_no_argument(rows[0], accepted))
        if "attention_mask" not in batch and "input_ids" in batch:
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            batch["attention_mask"] = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
        return batch

    return collate
