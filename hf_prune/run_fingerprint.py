"""What a run's results depend on: its settings, the model and the data, in a form that can be kept and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from .calibration import Batch, CalibrationData
from .config import PruningConfig
from .errors import PruningError
from .offloading import named_tensors

# Of everything that is kept; another one where steps change, or what they keep.
FORMAT = "1"
# Elements of a tensor that are worked on at once.
CHUNK = 2**24
# Of a model's config: where it comes from, and what transformers notes down itself, on the first loss for instance.
_NOTES = ("_name_or_path", "transformers_version", "problem_type", "use_cache", "architectures", "dtype")

Fingerprint = dict[str, dict[str, Any]]


def fingerprint(model: PreTrainedModel, config: PruningConfig, data: CalibrationData) -> Fingerprint:
    """What this process's results depend on, JSON-serialisable.

    All weights and all of this process's batches are read once; of offloaded weights one is in memory at a time.

    Raises:
        PruningError: the data comes in another order whenever it is read.
    """
    settings = json.loads(json.dumps(model.config.to_dict(), default=str))
    return {
        "software": {
            "format": FORMAT,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "processes": data.processes,
        },
        "pruning": json.loads(json.dumps(config.to_dict())),
        "model": {
            "class": type(model).__name__,
            "attention": str(getattr(model.config, "_attn_implementation", None)),
            **{name: value for name, value in settings.items() if name not in _NOTES},
        },
        "weights": {name: tensor_digest(tensor) for name, tensor in named_tensors(model)},
        "data": _batch_digests(data),
    }


def differences(stored: Mapping[str, Any], now: Fingerprint) -> Iterator[str]:
    """What differs between two fingerprints, in words: settings with both values, the first weight, the first batch."""
    for part in ("software", "pruning", "model"):
        was, has = stored.get(part, {}), now[part]
        for name in {**was, **has}:
            if was.get(name) != has.get(name):
                yield f"{part}: {name}={was.get(name)!r} (now {has.get(name)!r})"
    for part, one in (("weights", "of"), ("data", "batch")):
        was, has = stored.get(part, {}), now[part]
        changed = [name for name in {**was, **has} if was.get(name) != has.get(name)]
        if changed:
            others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            yield f"{part}: {one} {changed[0]}{others} ({len(was)} in all, now {len(has)})"


def tensor_digest(tensor: torch.Tensor) -> str:
    """Dtype and shape of a tensor, and a checksum of its values, some of which are on the CPU at a time."""
    digest = hashlib.sha256()
    flat = tensor.detach().reshape(-1)
    for part in flat.split(CHUNK):
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {list(tensor.shape)} {digest.hexdigest()[:32]}"


def _batch_digests(data: CalibrationData) -> dict[str, str]:
    """A checksum of every batch of this process, by its place among those of all processes, counted from 0."""
    found = {str(data.batch_number(index)): _batch_digest(batch) for index, batch in enumerate(data)}
    again = next(iter(data), None)
    if again is not None and _batch_digest(again) != next(iter(found.values())):
        raise PruningError(
            "The calibration data comes in another order, or with other values, whenever it is read, so an interrupted"
            " run could not go on with it: give a DataLoader without shuffle=True, or a Dataset."
        )
    return found


def _batch_digest(batch: Batch) -> str:
    values = {
        name: tensor_digest(value) if isinstance(value, torch.Tensor) else repr(value)
        for name, value in sorted(batch.items())
    }
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]
