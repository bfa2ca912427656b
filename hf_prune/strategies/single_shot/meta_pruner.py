"""The meta-pruner: a small convolutional network that looks at attention matrices (Zhang et al. 2020, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ...errors import PruningError

FORMAT = 1
# In the order of the network's two outputs.
INPUT_TYPES = ("single", "pair")
# Side of what the last convolution reads, whatever the size of the maps.
_LAST_SIDE = 4


class MetaPrunerConfig(PreTrainedConfig):
    """Sizes of a meta-pruner; the defaults are the paper's (section 4.1).

    Attributes:
        map_size: side of the square attention maps that are scored: a power of two of at least 16. Every halving of it
            down to 4 is one convolution, so 128 makes five.
        base_filters: output channels of the first convolution; each one after it has twice as many.
        initializer_range: standard deviation of new convolutions' weights.
        format_version: how checkpoints of the pruner are laid out.
    """

    model_type = "hf_prune_meta_pruner"

    map_size: int = 128
    base_filters: int = 8
    initializer_range: float = 0.01
    format_version: int = FORMAT


@dataclass
class MetaPrunerOutput(ModelOutput):
    """What a meta-pruner returns.

    Attributes:
        scores: `[maps, 2]` in (0, 1): how informative each map is in tasks on single sentences, and on pairs.
    """

    scores: torch.Tensor | None = None


class MetaPruner(PreTrainedModel):
    """Scores attention maps of any model, for tasks on single sentences and on sentence pairs (Eq. 1).

    It knows nothing about the model that the maps are from, so a pruner that was trained on one model prunes others, of
    any number of layers and heads.

    Args:
        config: its sizes.

    Raises:
        PruningError: sizes that do not work, or a checkpoint of another version.
    """

    config_class = MetaPrunerConfig
    base_model_prefix = "meta_pruner"
    main_input_name = "maps"

    def __init__(self, config: MetaPrunerConfig) -> None:
        super().__init__(config)
        _check(config)
        self.encoder = _encoder(config.map_size, config.base_filters)
        channels = config.base_filters * config.map_size // (2 * _LAST_SIDE)
        self.scorer = nn.Conv2d(channels, len(INPUT_TYPES), _LAST_SIDE, bias=False)
        self.post_init()

    def forward(self, maps: torch.Tensor) -> MetaPrunerOutput:
        """Scores maps `[maps, size, size]`; see `fit_maps` for how they are brought to this size."""
        features = self.encoder(maps.to(self.scorer.weight).unsqueeze(1))
        return MetaPrunerOutput(scores=torch.sigmoid(self.scorer(features).flatten(1)))

    def scores(self, maps: torch.Tensor, input_type: str, at_once: int | None = 256) -> torch.Tensor:
        """One score per map for one type of input.

        Args:
            maps: `[..., size, size]`.
            input_type: "single" or "pair".
            at_once: maps that go through the network together, which bounds its memory; None for all of them. In
                evaluation mode the scores do not depend on it, in training mode batch normalisation sees one part.

        Returns:
            `[...]`, in (0, 1).
        """
        column = INPUT_TYPES.index(input_type)
        flat = maps.flatten(0, -3)
        parts = flat.split(at_once or max(1, len(flat)))
        scores = torch.cat([self(part).scores[:, column] for part in parts])
        return scores.reshape(maps.shape[:-2])


def _encoder(map_size: int, base_filters: int) -> nn.Sequential:
    """Convolutions that halve the side and double the channels, all but the first one with batch normalisation."""
    layers: list[nn.Module] = [nn.Conv2d(1, base_filters, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    side, channels = map_size // 2, base_filters
    while side > _LAST_SIDE:
        layers += [
            nn.Conv2d(channels, 2 * channels, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.LeakyReLU(0.2),
        ]
        side, channels = side // 2, 2 * channels
    return nn.Sequential(*layers)


def _check(config: MetaPrunerConfig) -> None:
    if config.format_version != FORMAT:
        raise PruningError(
            f"The meta-pruner has format {config.format_version!r}, but this hf_prune reads format {FORMAT}. Train it"
            " again, or use the version of hf_prune that made it."
        )
    size = config.map_size
    if size < 4 * _LAST_SIDE or size & (size - 1):
        raise PruningError(f"map_size={size} must be a power of two of at least {4 * _LAST_SIDE}.")
    if config.base_filters < 1:
        raise PruningError(f"base_filters={config.base_filters} must be at least 1.")


AutoConfig.register(MetaPrunerConfig.model_type, MetaPrunerConfig, exist_ok=True)
AutoModel.register(MetaPrunerConfig, MetaPruner, exist_ok=True)
