"""Rows of a data set: what tells them from batches, and how batches are made of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from .errors import PruningError

Collator = Callable[[list[Any]], Mapping[str, Any]]

ADVICE = "Tokenise the data first (images and sound: run the model's processor on them)."
LABEL_COLUMNS = {"label": "labels", "label_ids": "labels"}
# In the place of a token's label, where nothing is predicted.
IGNORED = -100
# Main inputs of models, with the dimensions that a batch of them has.
_BATCH_DIMENSIONS = {"input_ids": 2, "inputs_embeds": 3, "pixel_values": 4, "input_values": 2, "input_features": 3}


def is_row(item: Any, inputs: Collection[str]) -> bool:
    """Whether an item is a row: it holds plain values, a single label, or tensors with a dimension less than a batch's.

    Args:
        item: from the data.
        inputs: names of the model's main inputs.
    """
    if not isinstance(item, Mapping):
        return False
    tensors = {name: value for name, value in item.items() if isinstance(value, torch.Tensor)}
    if not tensors or any("label" in str(name) and _is_number(value) for name, value in item.items()):
        return True
    main = next((name for name in inputs if name in tensors), None)
    return main is not None and tensors[main].dim() < _BATCH_DIMENSIONS.get(main, 2)


def no_argument(columns: Iterable[str], accepted: Collection[str]) -> str:
    """What to say of columns that the model takes none of."""
    return (
        f"None of the calibration data's columns ({', '.join(columns) or 'none'}) is an argument of the model"
        f" ({', '.join(sorted(accepted))}). {ADVICE}"
    )


def _ragged(name: str, values: Sequence[torch.Tensor]) -> str:
    shapes = ", ".join(sorted({str(tuple(value.shape)) for value in values})[:4])
    return (
        f"The rows' {name} differ in shape ({shapes}), and only tokens are padded without being asked. Pass a"
        " data_collator that makes batches of them, with the model's processor for instance."
    )


def row_batches(rows: Any, collator: Collator, batch_size: int) -> DataLoader[Any]:
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


def is_map_style(data: Any) -> bool:
    """Whether items are read by their number: a list, or a PyTorch `Dataset` of the user's own."""
    return isinstance(data, Sized) and hasattr(data, "__getitem__") and not isinstance(data, (Mapping, str))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.dim() == 0)


def padding_collator(model: PreTrainedModel, accepted: Collection[str]) -> Collator:
    """Pads ragged tokens to the longest of their batch, as the usual collators do, with what the config knows."""
    pad_token = getattr(model.config, "pad_token_id", None) or 0
    fill = {"input_ids": pad_token, "decoder_input_ids": pad_token, "labels": IGNORED}

    def collate(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name in rows[0]:
            target = LABEL_COLUMNS.get(name, name)
            if target not in accepted:
                continue
            values = [torch.as_tensor(row[name]) for row in rows]
            if len({value.shape for value in values}) == 1:
                batch[target] = torch.stack(values)
            elif values[0].dim() == 1 and not values[0].is_floating_point():
                padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill.get(target, 0))
                batch[target] = padded
            else:
                raise PruningError(_ragged(target, values))
        if not batch:
            raise PruningError(no_argument(rows[0], accepted))
        if "attention_mask" not in batch and "input_ids" in batch:
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            batch["attention_mask"] = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
        return batch

    return collate
