"""Random images, videos and sounds, in the shapes in which models want them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

Batch = dict[str, Any]

# Arguments of forward that hold images, videos, sounds or series.
MEDIA = (
    *("pixel_values", "pixel_values_videos", "hidden_states", "input_values", "input_features", "past_values"),
    "noise_embeds",
)
_GRIDS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw", "hidden_states": "grid_thw"}
_MASKS = ("input_features_mask", "feature_attention_mask")


def media_variants(model: PreTrainedModel, name: str, accepted: Mapping[str, Any], rows: int) -> Iterator[Batch]:
    """The shapes in which a model may want an argument, the likeliest first."""
    if name in _GRIDS:
        yield from _pictures(model, name, accepted, rows)
    elif name == "input_values":
        yield from _sounds(model, rows)
    elif name == "input_features":
        for features in _spectrograms(model, rows):
            masks = [mask for mask in _MASKS if mask in accepted]
            for frames in (features.shape[2], features.shape[1]) if masks else (0,):
                mask = dict.fromkeys(masks, torch.ones(rows, frames, dtype=torch.long))
                yield {name: features, **mask}
    elif name == "past_values":
        steps = number(model.config, "context_length") or 32
        yield {name: noise(model, rows, steps, number(model.config, "num_input_channels") or 1)}
    else:
        yield {name: noise(model, rows, 4, number(model.config, "hidden_size") or 32)}


def noise(model: PreTrainedModel, *shape: int) -> torch.Tensor:
    """Standard normal values in the model's precision, the same ones each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)


def number(config: Any, name: str) -> int | None:
    """A whole number in a config, or in the first of its parts that has it."""
    value = entry(config, name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def entry(config: Any, name: str) -> Any:
    """An entry of a config, or of the first of its parts that has it."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # it differs between layers
        value = None
    if value is not None:
        return value
    parts = (getattr(config, part, None) for part in getattr(config, "sub_configs", {}))
    return next((found for part in parts if part is not None and (found := entry(part, name)) is not None), None)


def _pictures(model: PreTrainedModel, name: str, accepted: Mapping[str, Any], rows: int) -> Iterator[Batch]:
    config = model.config
    channels = number(config, "num_channels") or number(config, "in_channels") or number(config, "in_chans") or 3
    height, width = _side(config)
    patch = number(config, "patch_size") or 16
    patches = height // patch * (width // patch)
    grid = next((grid for grid in (_GRIDS[name], "grid_thw", "image_grid_thw") if grid in accepted), None)
    if grid is not None:
        depth = number(config, "temporal_patch_size") or 1
        sizes = torch.tensor([[1, height // patch, width // patch]] * rows)
        more = {"merge_sizes": torch.ones(rows, dtype=torch.long)} if "merge_sizes" in accepted else {}
        for frames in dict.fromkeys((depth, 1)):
            yield {name: noise(model, rows * patches, channels * frames * patch**2), grid: sizes, **more}
    if "spatial_shapes" in accepted:
        more = {"spatial_shapes": torch.tensor([[height // patch, width // patch]] * rows)}
        if "pixel_attention_mask" in accepted:
            more["pixel_attention_mask"] = torch.ones(rows, patches, dtype=torch.long)
        yield {name: noise(model, rows, patches, channels * patch**2), **more}
    frames = number(config, "num_frames") or number(config, "frames_per_clip") or 1
    video = {name: noise(model, rows, frames, channels, height, width)}
    picture = {name: noise(model, rows, channels, height, width)}
    yield from (video, picture) if frames > 1 or name == "pixel_values_videos" else (picture, video)


def _side(config: Any) -> tuple[int, int]:
    names = ("image_size", "img_size", "input_size", "crop_size")
    size = next((found for name in names if (found := entry(config, name))), 224)
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[-1])
    return (size, size) if isinstance(size, int) else (224, 224)


def _sounds(model: PreTrainedModel, rows: int) -> Iterator[Batch]:
    config = model.config
    if hasattr(config, "max_length") and hasattr(config, "num_mel_bins"):  # spectrogram transformers
        yield {"input_values": noise(model, rows, config.max_length, config.num_mel_bins)}
    yield {"input_values": noise(model, rows, 4000)}
    yield {"input_values": noise(model, rows, 1, 4000)}


def _spectrograms(model: PreTrainedModel, rows: int) -> Iterator[torch.Tensor]:
    names = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "feature_size")
    bins = next((found for name in names if (found := number(model.config, name))), 80)
    frames = 2 * (number(model.config, "max_source_positions") or 32)
    yield noise(model, rows, bins, frames)
    yield noise(model, rows, min(64, frames), bins)
