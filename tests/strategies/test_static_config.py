from __future__ import annotations

from typing import Any

import pytest

from hf_prune import (
    AutoPruningConfig,
    PruningCallback,
    PruningError,
    StaticMaskConfig,
    StaticPruningConfig,
    prune_model,
)
from tests.training.runs import bert

BAD: list[tuple[dict[str, Any], str]] = [
    ({}, r"sparsity=None must lie in \[0, 1\)"),
    ({"sparsity": 1.0}, r"sparsity=1.0 must lie in \[0, 1\)"),
    ({"sparsity": -0.1}, r"sparsity=-0.1"),
    ({"sparsity": True}, r"sparsity=True"),
    ({"sparsity": float("nan")}, r"sparsity=nan"),
    ({"sparsity": 0.5, "masking": "layer"}, r"masking='layer' is unknown; use one of local, score, global"),
    ({"sparsity": 0.5, "schedule": "step"}, r"schedule='step' is unknown; use one of cubic, linear"),
    ({"sparsity": 0.5, "temperature": 0.0}, r"temperature=0.0 must be a number above 0"),
    ({"sparsity": 0.5, "regularization": -1.0}, r"regularization=-1.0"),
    ({"sparsity": 0.5, "score_learning_rate": None}, r"score_learning_rate=None"),
    ({"sparsity": 0.5, "begin": 0.7, "end": 0.5}, r"begin=0.7 must not be above end=0.5"),
    ({"sparsity": 0.5, "frequency": 0}, r"frequency=0"),
    ({"sparsity": 0.5, "target_modules": 3}, r"target_modules=3"),
]


@pytest.mark.parametrize("config_class", [StaticPruningConfig, StaticMaskConfig])
@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings(config_class: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        config_class(**settings)


def test_both_have_the_same_settings() -> None:
    settings = {"sparsity": 0.3, "masking": "score", "schedule": "linear", "end": 200, "exclude_modules": ["key"]}
    assert StaticMaskConfig(**settings).pruning_config() == StaticPruningConfig(**settings)


def test_temperature_follows_the_sparsity() -> None:
    assert StaticPruningConfig(sparsity=0.3).score_temperature == 4
    assert StaticPruningConfig(sparsity=0.31).score_temperature == 1
    assert StaticPruningConfig(sparsity=0.9, masking="score", temperature=2.5).score_temperature == 2.5


def test_from_dictionary_in_a_callback() -> None:
    config = StaticPruningConfig(sparsity=0.8, masking="global")
    assert AutoPruningConfig.from_dict(config.to_dict()) == config
    assert PruningCallback(config.to_dict()).config == config


def test_not_at_one_go() -> None:
    with pytest.raises(PruningError, match="only while a model is trained"):
        prune_model(bert(), StaticPruningConfig(sparsity=0.5))
