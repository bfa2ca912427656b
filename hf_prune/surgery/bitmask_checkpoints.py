"""Checkpoints in the bitmask format: how they are written, and the hook that lets transformers read them.

Reading has to come before everything that transformers does to checkpoint tensors, because what it does depends on the
model: names get or lose a prefix, experts are stacked, fused matrices are split, weights are cast, quantised and spread
over devices. So the hook wraps `PreTrainedModel._load_pretrained_model`, the one place where `from_pretrained` opens
the files, and hands it the packed matrices as slices like any others; from there on it is an ordinary dense checkpoint.
Files without packed matrices take the old way.

Not taken: a `WeightConverter` under `register_checkpoint_conversion_mapping` is registered per model type, only one
applies to a tensor (so none would be left for a family's own), and its reverse would be applied when the loaded model
is saved. A registered quantiser would occupy `quantization_config`. A key of the config would go on saying "bitmask"
after the loaded model has been saved densely: the tensors' own names say it instead.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from ..errors import PruningError
from ..whole_files import move_into
from .bitmask import is_packed, packed, unpacked

# The names under which transformers looks for a model's weights, as the shell writes patterns.
_NUMBERED = "-".join(["[0-9]" * 5, "of", "[0-9]" * 5])
WEIGHT_PATTERNS = tuple(
    f"{name}{suffix}"
    for name, ending in (("model", "safetensors"), ("pytorch_model", "bin"))
    for suffix in (f".{ending}", f"-{_NUMBERED}.{ending}", f".{ending}.index.json")
)


def is_weight_file(name: str) -> bool:
    """Whether transformers looks under this name for a model's weights."""
    return any(fnmatchcase(name, pattern) for pattern in WEIGHT_PATTERNS)


def save_bitmask(model: PreTrainedModel, folder: str | os.PathLike[str], **kwargs: Any) -> None:
    """Saves a model as `model.save_pretrained` does, with the matrices that have many zeros in the bitmask format.

    The checkpoint loads with every `from_pretrained`, bit for bit, once hf_prune is imported; without it, loading
    fails. Names, shards and index are those of the dense checkpoint, which lies in a temporary folder within `folder`
    meanwhile: the disk has to have room for it.

    Args:
        model: any model.
        folder: where to; files of the same name are replaced, and weights that an earlier model left there removed.
        **kwargs: for `PreTrainedModel.save_pretrained`.

    Raises:
        PruningError: `push_to_hub` is asked for, which would upload the dense files.
    """
    if kwargs.get("push_to_hub"):
        raise PruningError(
            "push_to_hub=True is not possible with the bitmask format: save to a folder, and upload that with"
            " huggingface_hub's upload_folder."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".dense-", dir=folder) as temporary:
        model.save_pretrained(temporary, **kwargs)
        _pack_files(Path(temporary))
        move_into(Path(temporary), folder, is_weight_file)  # an old one would be read in place of new shards


def _pack_files(folder: Path) -> None:
    """Rewrites the weights in a folder that transformers has saved, file by file, and the index, if there is one."""
    files: dict[str, str] = {}
    size = 0
    for file in sorted(folder.glob("model*.safetensors")):  # an adapter's file, which PEFT reads, is called otherwise
        tensors = _pack_file(file)
        files |= dict.fromkeys(tensors, file.name)
        size += sum(tensors.values())
    for file in folder.glob("model*.index*.json"):
        index = json.loads(file.read_text(encoding="utf8"))
        index["weight_map"] = files
        index["metadata"]["total_size"] = size
        file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf8")


def _pack_file(file: Path) -> dict[str, int]:
    """Rewrites one file; returns the bytes of every tensor that is in it now."""
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(file, framework="pt") as source:
        metadata = source.metadata()
        for name in source.keys():  # noqa: SIM118 - not a dictionary
            tensors |= packed(name, source.get_tensor(name))
    rewritten = file.with_suffix(".packed")
    save_file(tensors, rewritten, metadata=metadata)
    os.replace(rewritten, file)
    return {name: tensor.nbytes for name, tensor in tensors.items()}


def install_bitmask_hook() -> None:
    """Wraps `PreTrainedModel._load_pretrained_model`, once per process."""
    original: Callable[..., Any] = PreTrainedModel._load_pretrained_model
    if getattr(original, "reads_bitmasks", False):
        return

    @functools.wraps(original)
    def load(model: Any, state_dict: Any, checkpoint_files: Sequence[str] | None, *args: Any, **kwargs: Any) -> Any:
        if state_dict is not None or not _any_packed(checkpoint_files or ()):
            return original(model, state_dict, checkpoint_files, *args, **kwargs)
        with ExitStack() as opened:
            tensors = _read_packed(checkpoint_files or (), opened)
            # Without the files: parameters that stay on disk would be read from them later, where they are packed.
            return original(model, tensors, None, *args, **kwargs)

    load.reads_bitmasks = True  # type: ignore[attr-defined]
    PreTrainedModel._load_pretrained_model = staticmethod(load)


def _any_packed(files: Sequence[str]) -> bool:
    """Whether a checkpoint has a packed matrix; only headers are read."""
    if not all(str(file).endswith(".safetensors") for file in files):
        return False
    for file in files:
        with safe_open(file, framework="pt") as source:
            if is_packed(source.keys()):
                return True
    return False


def _read_packed(files: Sequence[str], opened: ExitStack) -> dict[str, Any]:
    """All tensors of a checkpoint by name, to be read when they are indexed.

    Args:
        files: of the checkpoint.
        opened: closes them in the end.

    Raises:
        PruningError: a packed matrix is damaged.
    """
    tensors: dict[str, Any] = {}
    for file in files:
        source = opened.enter_context(safe_open(file, framework="pt"))
        slices = {name: source.get_slice(name) for name in source.keys()}  # noqa: SIM118 - not a dictionary
        tensors |= unpacked(slices, str(file))
    if is_deepspeed_zero3_enabled():  # its loader takes tensors, not slices
        return {name: tensor[...] for name, tensor in tensors.items()}
    return tensors
