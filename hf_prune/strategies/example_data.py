"""A random example for strategies that look at no data: costs are counted, and the cut is checked, on it."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..anatomy.example_inputs import example_batch
from ..budget.positions import position_count
from ..calibration import Batch
from ..config import PruningConfig

DEFAULT_LENGTH = 128


def example_of(model: PreTrainedModel, config: PruningConfig) -> Batch:
    """A batch of `config.sequence_length` tokens, by default 128 or as many as the model has positions for."""
    length = getattr(config, "sequence_length", None) or min(DEFAULT_LENGTH, position_count(model) or DEFAULT_LENGTH)
    return example_batch(model, length=length)
