"""What `run` measures before and after, as `compute_metrics` functions for transformers' evaluation loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from ..rows import IGNORED


def classification_accuracy(prediction: Any) -> dict[str, float]:
    """The share of examples whose class is right."""
    return {"accuracy": float((_logits(prediction).argmax(-1) == prediction.label_ids).mean())}


def regression_correlation(prediction: Any) -> dict[str, float]:
    """Pearson's and Spearman's correlation with the targets, as for GLUE's STS-B; 0 where one side is constant."""
    values, targets = _logits(prediction).reshape(-1), np.asarray(prediction.label_ids).reshape(-1)
    if np.ptp(values) == 0 or np.ptp(targets) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(stats.pearsonr(values, targets).statistic),
        "spearman": float(stats.spearmanr(values, targets).statistic),
    }


def token_accuracy(prediction: Any) -> dict[str, float]:
    """The share of labelled tokens whose class is right."""
    labels = prediction.label_ids
    return {"accuracy": float((_logits(prediction).argmax(-1) == labels)[labels != IGNORED].mean())}


def span_accuracy(prediction: Any) -> dict[str, float]:
    """The share of questions whose answer's first and last token are both right."""
    starts, ends = prediction.predictions[:2]
    first, last = prediction.label_ids
    return {"exact_span": float(((starts.argmax(-1) == first) & (ends.argmax(-1) == last)).mean())}


def _logits(prediction: Any) -> np.ndarray[Any, Any]:
    """The logits, which are the first of a model's outputs where it has several."""
    logits = prediction.predictions
    return np.asarray(logits[0] if isinstance(logits, tuple) else logits)
