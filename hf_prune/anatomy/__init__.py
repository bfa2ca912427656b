"""Where a model keeps its heads, filters and sublayers."""

from .blocks import Block, ModelAnatomy, Projection, linear_at
from .describe import describe_model
from .families import FAMILIES, supported_model_types
from .layouts import AttentionLayout, Family, FeedForwardLayout, Tap

__all__ = [
    "FAMILIES",
    "AttentionLayout",
    "Block",
    "Family",
    "FeedForwardLayout",
    "ModelAnatomy",
    "Projection",
    "Tap",
    "describe_model",
    "linear_at",
    "supported_model_types",
]
