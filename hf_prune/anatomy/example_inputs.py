"""Random inputs of the right shape for any model: text, images or sound, as its config says.

Used to prove an anatomy and to measure latency where there is no data at hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError

Batch = dict[str, Any]


def example_batch(model: PreTrainedModel, rows: int = 2, length: int = 12) -> Batch:
    """A batch of `rows` random examples with every argument that the model cannot do without.

    Args:
        model: any transformers model.
        rows: examples.
        length: tokens of a text; images and sound have the size that the config gives.

    Raises:
        UnsupportedModelError: the model's main input is of a kind that is not known.
    """
    accepted = inspect.signature(model.forward).parameters
    makers = {
        "input_ids": _input_ids,
        "pixel_values": _pixel_values,
        "input_values": _sound,
        "input_features": _features,
    }
    wanted = [name for name in makers if name == model.main_input_name or _is_required(accepted.get(name))]
    if model.main_input_name not in makers:
        raise UnsupportedModelError(
            f"{type(model).__name__} reads {model.main_input_name!r}, for which no example can be made."
        )
    if "pixel_values" in accepted and "input_ids" in accepted and hasattr(model.config, "logit_scale_init_value"):
        wanted = ["input_ids", "pixel_values"]  # two towers
    batch: Batch = {}
    for name in dict.fromkeys(wanted):
        batch |= makers[name](model, rows, length)
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        batch["decoder_input_ids"] = _ids(model, rows, length)
    if "bbox" in accepted and "input_ids" in batch:
        batch["bbox"] = torch.zeros(rows, length, 4, dtype=torch.long)
    if "use_cache" in accepted:
        batch["use_cache"] = False
    return {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }


def _is_required(parameter: inspect.Parameter | None) -> bool:
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _ids(model: PreTrainedModel, rows: int, length: int) -> torch.Tensor:
    vocabulary = int(_number(model.config, "vocab_size") or model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    # Ids that embeddings treat specially (padding shifts RoBERTa's positions) are low; stay clear of them.
    return torch.randint(min(10, vocabulary - 1), vocabulary, (rows, length), generator=generator)


def _input_ids(model: PreTrainedModel, rows: int, length: int) -> Batch:
    ids = _ids(model, rows, length)
    if type(model).__name__.endswith("ForMultipleChoice"):
        ids = ids[:, None]
    end = _number(model.config, "eos_token_id")
    if end is not None and end < (_number(model.config, "vocab_size") or 0):
        ids[..., -1] = end  # CLIP pools there
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _pixel_values(model: PreTrainedModel, rows: int, length: int) -> Batch:
    size = _entry(model.config, "image_size") or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    channels = _number(model.config, "num_channels") or 3
    return {"pixel_values": _noise(model, rows, channels, height, width)}


def _sound(model: PreTrainedModel, rows: int, length: int) -> Batch:
    if hasattr(model.config, "max_length") and hasattr(model.config, "num_mel_bins"):  # spectrogram transformers
        return {"input_values": _noise(model, rows, model.config.max_length, model.config.num_mel_bins)}
    return {"input_values": _noise(model, rows, 4000)}


def _features(model: PreTrainedModel, rows: int, length: int) -> Batch:
    bins = _number(model.config, "num_mel_bins") or _number(model.config, "input_feat_per_channel") or 80
    positions = _number(model.config, "max_source_positions") or 32
    if model.config.model_type == "whisper":
        return {"input_features": _noise(model, rows, bins, 2 * positions)}
    return {"input_features": _noise(model, rows, min(64, positions), bins)}


def _noise(model: PreTrainedModel, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)


def _entry(config: Any, name: str) -> Any:
    """An entry of the config, or of the first of its parts that has it."""
    value = getattr(config, name, None)
    if value is not None:
        return value
    parts = (getattr(config, part, None) for part in getattr(config, "sub_configs", {}))
    return next((found for part in parts if part is not None and (found := _entry(part, name)) is not None), None)


def _number(config: Any, name: str) -> int | None:
    value = _entry(config, name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


