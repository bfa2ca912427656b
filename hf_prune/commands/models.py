"""Loads the models that commands work on, and says clearly when one cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ..errors import PruningError
from .console import first_line

DTYPES = ("float32", "float16", "bfloat16", "float64")
# What each means to transformers.
DEVICE_MAPS: dict[str, Any] = {"auto": "auto", "disk": {"": "disk"}}
# Their tokenizers join words that come already split, unless told to put a space before each.
_SPACE_BEFORE_WORDS = {"bloom", "deberta", "gpt2", "longformer", "roberta"}


def load_config(name: str) -> PreTrainedConfig:
    """The config of a local folder or Hub model; PruningError if there is none."""
    return _load(AutoConfig, name)


def load_tokenizer(name: str, config: PreTrainedConfig, split_words: bool = False) -> Any:
    """The tokenizer that lies with a model.

    Args:
        name: local folder or Hub name.
        config: the model's.
        split_words: whether it has to take texts that are split into words.

    Raises:
        PruningError: there is none (transformers then makes one that knows no word), or one with more tokens than the
            model has embeddings.
    """
    extra = {"add_prefix_space": True} if split_words and config.model_type in _SPACE_BEFORE_WORDS else {}
    tokenizer = _load(AutoTokenizer, name, **extra)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise PruningError(f"{name} holds no tokenizer; save the model's own there (tokenizer.save_pretrained).")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    known = getattr(config.get_text_config(), "vocab_size", None)
    if known is not None and len(tokenizer) > known:
        raise PruningError(
            f"The tokenizer in {name} knows {len(tokenizer):,} tokens and the model only {known:,}: they do not belong"
            " together."
        )
    return tokenizer


def load_model(
    name: str,
    auto_class: Any,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | None = None,
    offload_folder: Path | None = None,
) -> tuple[Any, list[str]]:
    """A model in evaluation mode, and the names of the weights that its checkpoint lacks.

    Args:
        name: local folder or Hub name.
        auto_class: an Auto class, or a concrete model class.
        dtype: one of `DTYPES`, or "auto" for the checkpoint's own.
        device: as for `torch.device`; by default the GPU if there is one.
        device_map: one of `DEVICE_MAPS`, instead of a device.
        offload_folder: with a device map, where weights go that cannot be read from the checkpoint when they are used,
            and what else does not fit into memory.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise PruningError(f"dtype={dtype!r} is unknown; use auto, {', '.join(DTYPES)}.")
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    if offload_folder is not None and device_map is None:
        raise PruningError(f"offload_folder={offload_folder} belongs to a device_map, which is not given.")
    placing = {"device_map": _device_map(device_map, device), "offload_folder": offload_folder} if device_map else {}
    place = None if placing else _device(device)
    model, info = _load(auto_class, name, dtype=wanted, output_loading_info=True, **placing)
    model = model if place is None else model.to(place)
    return model.eval(), sorted(info["missing_keys"])


def model_class_of(config: PreTrainedConfig) -> Any:
    """The class that a checkpoint names as its architecture, else the headless Auto class."""
    for name in config.architectures or []:
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    return AutoModel


def model_without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config, pruned as the config says, on the meta device: shapes without any memory.

    Raises:
        PruningError: no model can be built from the config.
    """
    model_class = model_class_of(config)
    try:
        with torch.device("meta"):
            if model_class is AutoModel:
                return AutoModel.from_config(config)
            return model_class._from_config(config)
    except PruningError:
        raise
    except Exception as error:  # modelling code raises what it likes
        raise PruningError(f"No {model_class.__name__} can be built from this config: {first_line(error)}") from error


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PruningError(f"device={name!r} cannot be used here: {first_line(error)}") from error
    return device


def _device_map(name: str, device: str | None) -> Any:
    if name not in DEVICE_MAPS:
        raise PruningError(f"device_map={name!r} is unknown; use {' or '.join(DEVICE_MAPS)}.")
    if device is not None:
        raise PruningError(f"device={device!r} and device_map={name!r} exclude each other; give one of them.")
    return DEVICE_MAPS[name]


def _load(auto_class: Any, name: str, **settings: Any) -> Any:
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise PruningError(f"There is no folder {name}.")
    try:
        return auto_class.from_pretrained(name, **settings)
    except PruningError:
        raise
    except Exception as error:  # of damaged files, missing packages or settings, from whichever library it comes
        reason = first_line(error)
        where = name if Path(name).is_dir() else f"{name} (there is no such folder, so it was taken for a Hub name)"
        raise PruningError(f"{where} could not be loaded with {auto_class.__name__}: {reason}") from error
