"""What pruning did to a model, for people: tables, pictures and model cards."""

from .report import BlockReport, LatencySetting, PruningReport, Size

__all__ = ["BlockReport", "LatencySetting", "PruningReport", "Size"]
