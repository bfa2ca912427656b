"""Single-shot meta-pruning: attention maps → scores of heads → the highest in every layer stay."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ...anatomy import ModelAnatomy
from ...budget import data_lengths
from ...budget.targets import wanted_keys
from ...calibration import CalibrationData
from ...errors import PruningError
from ...offloading import device_of
from ...report.clock import StageClock
from ..base import StagedStrategy
from ..scored import ScoredUnits, choose_heads_by_scores
from .config import SingleShotPruningConfig
from .head_scores import score_heads
from .meta_pruner import MetaPruner, MetaPrunerConfig


def measure_attention(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: SingleShotPruningConfig,
    data: CalibrationData,
    clock: StageClock,
) -> ScoredUnits:
    """The mean score of every head that may be pruned."""
    with clock("attention maps"):
        lengths = data_lengths(model, anatomy, data, config.sequence_length)
        return ScoredUnits(mean_scores(model, anatomy, config, data), lengths)


# Zhang et al. (2020), section 3.1.
prune_by_attention = StagedStrategy(measure_attention, choose_heads_by_scores)


def mean_scores(
    model: PreTrainedModel, anatomy: ModelAnatomy, config: SingleShotPruningConfig, data: CalibrationData
) -> dict[str, torch.Tensor]:
    """The mean score of every unit over the examples of all processes, by block key, for the blocks that may be pruned.

    Every example counts the same, whichever batch it is in (the authors' code averages means of batches).
    """
    wanted = wanted_keys(anatomy, config)
    blocks = [block for block in anatomy.attentions if block.key in wanted and block.units]
    pruner = load_pruner(str(config.pruner_name_or_path)).to(device_of(model))
    assert config.input_type is not None  # checked when the configuration was made
    batches = tqdm(data.take(config.examples), desc="Attention maps", unit="batch", disable=not data.is_main)
    found = data.agree(lambda: score_heads(model, blocks, pruner, config.input_type or "", batches))
    found.counts = data.sum(found.counts)
    found.sums = [data.sum(total) for total in found.sums]
    return {block.key: score for block, score in zip(blocks, found.means(), strict=True)}


def load_pruner(name_or_path: str) -> MetaPruner:
    """A meta-pruner from a folder or the Hub, in evaluation mode.

    Raises:
        PruningError: something else is there, or nothing; or it is of another version.
    """
    try:
        config = MetaPrunerConfig.get_config_dict(name_or_path)[0]
        found = config.get("model_type")
        if found != MetaPrunerConfig.model_type:
            raise PruningError(f"{name_or_path} holds a model of type {found!r}, not a MetaPruner.")
        return MetaPruner.from_pretrained(name_or_path, use_safetensors=True).eval()
    except OSError as error:
        raise PruningError(
            f"No MetaPruner could be loaded from {name_or_path!r}: {str(error).splitlines()[0]} Give a folder that"
            " train_meta_pruner wrote, or a repository on the Hub."
        ) from error
