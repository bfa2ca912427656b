"""Settings of Static Model Pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...weight_config import ScheduledPruningConfig
from .settings import StaticMaskSettings, check_static_settings


@dataclass
class StaticPruningConfig(StaticMaskSettings, ScheduledPruningConfig):
    """Static Model Pruning (Jiang et al. 2023): the weights stay what they are, and a task is a mask on them.

    Every weight has a score that learns by the straight-through gradient, and the highest scores' weights stay.
    Projections in the layers are pruned, embeddings and poolers only if `target_modules` names them. Nothing of the
    base model is trained, only the task head, with the training loop's own optimizer; and with `label_words` not even
    that. The same as a PEFT adapter, which leaves the base model whole and is a few megabytes on disk, is
    `StaticMaskConfig`.
    """

    strategy: ClassVar[str] = "static_mask"
    at_once: ClassVar[bool] = False
    IN_TRAINING: ClassVar[tuple[str, ...]] = (
        *ScheduledPruningConfig.IN_TRAINING,
        "masking",
        "temperature",
        "schedule",
        "regularization",
        "score_learning_rate",
        "magnitude_prior",
        "label_words",
        "label_word_head",
        "label_word_model",
        "label_word_tokenizer",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_static_settings(self)

    @property
    def prunes_weights(self) -> bool:
        """Always."""
        return True
