"""Settings of SNIP that are refused when they are made."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hf_prune import AutoPruningConfig, PruningError, SnipPruningConfig, prune_model
from tests.training.runs import bert

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"params": None}, "exactly one of params, flops and max_metric_drop; got none"),
    ({"flops": 0.5}, r"got params=0\.5, flops=0\.5"),
    *(({"theta": theta}, r"theta=.* must lie in \(0, 1\]") for theta in (0, -0.1, 1.01, math.nan, None, "1", True)),
    *(({"params": params}, r"params=.* must lie in \(0, 1\]") for params in (0, 1.5, math.inf)),
    ({"most": 0}, r"most=0 must lie in \(0, 1\]"),
    ({"layer_rate_decay": 1.1}, r"layer_rate_decay=1\.1 must lie in \(0, 1\]"),
    *(({"k": k}, f"k={k} must be a whole number of at least 1") for k in (0, 1.5, None)),
    ({"k_feed_forward": 0}, "k_feed_forward=0 must be a whole number of at least 1"),
    ({"iterations": 0}, "iterations=0 must be a whole number of at least 1"),
    ({"l1": -1}, "l1=-1 must be a number of at least 0"),
    ({"params": None, "max_metric_drop": -0.1}, r"max_metric_drop=-0\.1 must be a number of at least 0"),
    *(({"spectral_norm": bound}, "spectral_norm=.* must be a number of at least 0") for bound in (-1, math.inf)),
    ({"spectral_norm": 0}, "spectral_norm=0 would make every weight zero; give a bound above 0"),
    ({"spectral_form": "divide"}, "spectral_form='divide' says nothing without spectral_norm"),
    ({"metric": "accuracy"}, "metric='accuracy' says nothing without max_metric_drop"),
    ({"units": "heads", "k_feed_forward": 2}, "k_feed_forward=2 says nothing with units='heads'"),
    ({"gated": 1.0}, r"gated=1\.0 must lie in \(0, 1\)"),
    ({"measured": 0}, r"measured=0 must lie in \(0, 1\)"),
    ({"gated": 0.8}, r"gated=0\.8 and measured=0\.25 are shares of the same iteration"),
    ({"units": "filters"}, "units='filters' is unknown; use one of joint, heads"),
    ({"rule": "never"}, "rule='never' is unknown; use one of open_rate, always_closed"),
    ({"reduction": "token"}, "reduction='token' is unknown; use one of batch, example"),
    ({"spectral_norm": 5, "spectral_form": "cut"}, "spectral_form='cut' is unknown; use one of clip, divide"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        SnipPruningConfig(**{"params": 0.5} | settings)


def test_is_written_and_read() -> None:
    config = SnipPruningConfig(max_metric_drop=0.01, metric="accuracy", units="layers", spectral_norm=5)
    assert AutoPruningConfig.from_dict(config.to_dict()) == config
    assert (config.goal, SnipPruningConfig(flops=0.4).goal) == (None, ("flops", 0.4))


def test_not_at_one_go() -> None:
    with pytest.raises(PruningError, match="give it to PruningCallback, not to prune_model"):
        prune_model(bert(), SnipPruningConfig(params=0.5))
