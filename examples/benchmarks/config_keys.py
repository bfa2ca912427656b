"""How a configuration stands in the key of a cell, so that what was measured stays found while the library grows."""

from __future__ import annotations

from typing import Any

from hf_prune import FisherPruningConfig

# The paper's scores, whatever is the default by now.
PAPER_SCORES: dict[str, Any] = {"importance": "fisher", "labels": "data"}
# Settings that came after the first cells were measured, as they were until then: they are no part of a key.
_SINCE = {
    "blend": None,
    "labels": "data",
    "max_metric_drop": None,
    "metric": None,
    "iterative": False,
    "group_size": None,
    "order": "forward",
}


def config_key(config: FisherPruningConfig) -> dict[str, Any]:
    """All settings, except for those that are as they were when there were no others."""
    settings = {**config.to_dict(), "labels": config.labels or "data"}  # what is calibrated on here has labels
    return dict(item for item in settings.items() if item not in _SINCE.items())
