"""Static Model Pruning, after Jiang et al. (2023): frozen weights, and a mask that learns the task."""

from ...config import register_strategy
from .config import StaticPruningConfig
from .label_words import label_word_head, label_word_tokens
from .rule import StaticMaskPruner
from .settings import StaticMaskSettings, read_label_words
from .strategy import StaticPruner, static_mask_training
from .word_tokens import WordTokens

__all__ = [
    "StaticMaskPruner",
    "StaticMaskSettings",
    "StaticPruner",
    "StaticPruningConfig",
    "WordTokens",
    "label_word_head",
    "label_word_tokens",
    "read_label_words",
    "static_mask_training",
]

register_strategy(StaticPruningConfig, training=static_mask_training)
