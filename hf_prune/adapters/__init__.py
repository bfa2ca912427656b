"""hf_prune as PEFT methods."""

from .static_mask import StaticMaskConfig

__all__ = ["StaticMaskConfig"]
