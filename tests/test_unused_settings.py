"""Settings that would change nothing are refused, and what they can be used with is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_prune import AutoPruningConfig
from hf_prune.errors import PruningError

UNUSED = [
    ("magnitude", {"flops": 0.5, "initial_sparsity": 0.2}, "initial_sparsity=0.2 says nothing of heads and filters"),
    ("magnitude", {"flops": 0.5, "scope": "global"}, "scope='global' says nothing of heads and filters"),
    ("magnitude", {"params": 0.5, "after": "delete"}, "after='delete' says nothing of heads and filters"),
    ("magnitude", {"sparsity": 0.5, "round_to": 16}, "round_to=16 says nothing of single weights"),
    ("magnitude", {"pattern": "2:4", "uniform": True}, "uniform=True says nothing of single weights"),
    ("magnitude", {"sparsity": 0.5, "sequence_length": 64}, "sequence_length=64 says nothing of single weights"),
    ("magnitude", {"sparsity": 0.5, "latency_batch_size": 1}, "latency_batch_size=1 says nothing of single weights"),
    ("random", {"sparsity": 0.5, "round_to": 16}, "round_to=16 says nothing of single weights"),
    ("movement", {"threshold": 0.1, "pattern": "2:4"}, "pattern='2:4' says nothing with threshold="),
    ("movement", {"threshold": 0.1, "initial_sparsity": 0.2}, "initial_sparsity=0.2 says nothing with threshold="),
    ("movement", {"threshold": 0.1, "scope": "global"}, "scope='global' says nothing with threshold="),
    ("movement", {"sparsity": 0.5, "regularization": 10.0}, "regularization=10.0 says nothing without threshold="),
    ("static_mask", {"sparsity": 0.5, "temperature": 2.0}, "temperature=2.0 says nothing with masking='local'"),
    (
        "static_mask",
        {"sparsity": 0.5, "masking": "global", "temperature": 2.0},
        "temperature=2.0 says nothing with masking='global'",
    ),
    (
        "fisher",
        {"flops": 0.5, "recovery": "none", "refit_examples": 64},
        "refit_examples=64 says nothing with recovery='none'",
    ),
    (
        "fisher",
        {"flops": 0.5, "importance": "magnitude", "labels": "model"},
        "labels='model' says nothing with importance='magnitude'",
    ),
    ("fisher", {"flops": 0.5, "solver": "lsmr"}, "solver='lsmr' says nothing with recovery='weights'"),
    ("random", {"heads": 0.5, "round_to": 16}, "round_to=16 says nothing with heads=, which counts heads"),
    ("random", {"layers": 2, "uniform": True}, "uniform=True says nothing with layers=, which counts layers"),
    ("l0", {"heads": 0.5, "uniform": True}, "uniform=True says nothing with heads=, which counts heads"),
    (
        "l0",
        {"flops": 0.5, "regularization": 0.1, "target_warmup": 0.2},
        "target_warmup=0.2 says nothing with regularization=",
    ),
    ("snip", {"flops": 0.5, "rule": "always_closed", "theta": 0.5}, "theta=0.5 says nothing with rule='always_closed'"),
    (
        "head_importance",
        {"heads": 0.5, "scope": "layer", "normalize": False},
        "normalize=False says nothing with scope='layer'",
    ),
]


@pytest.mark.parametrize(("strategy", "settings", "message"), UNUSED)
def test_a_setting_that_would_change_nothing_is_refused(strategy: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError) as refused:
        AutoPruningConfig.for_strategy(strategy, **settings)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        ("magnitude", {"sparsity": 0.5, "initial_sparsity": 0.5, "scope": "global", "after": "delete"}),
        ("magnitude", {"flops": 0.5, "round_to": 16, "uniform": True, "sequence_length": 64}),
        ("movement", {"threshold": 0.1, "regularization": 10.0}),
        ("movement", {"sparsity": 0.5, "initial_sparsity": 0.2, "scope": "global"}),
        ("static_mask", {"sparsity": 0.5, "masking": "score", "temperature": 2.0}),
        ("fisher", {"flops": 0.5, "recovery": "mask_tuning", "refit_examples": 64, "solver": "lsmr"}),
        ("fisher", {"flops": 0.5, "recovery": "none", "importance": "blended", "refit_examples": 64}),
        ("fisher", {"flops": 0.5, "recovery": "mask_tuning", "importance": "magnitude", "labels": "model"}),
        ("random", {"flops": 0.5, "round_to": 16, "uniform": True}),
        ("random", {"heads": 0.5, "allow_empty_layers": True, "sequence_length": 64}),
        ("l0", {"heads": 0.5, "target_warmup": 0.2}),
        ("snip", {"flops": 0.5, "rule": "open_rate", "theta": 0.5}),
        ("head_importance", {"heads": 0.5, "scope": "global", "normalize": False}),
    ],
)
def test_settings_that_are_used_come_back_from_a_file(strategy: str, settings: dict[str, Any], tmp_path: Path) -> None:
    config = AutoPruningConfig.for_strategy(strategy, **settings)
    config.save_pretrained(tmp_path)
    assert AutoPruningConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize("strategy", ["magnitude", "movement"])
def test_a_schedule_does_not_run_downwards(strategy: str) -> None:
    with pytest.raises(PruningError, match=r"initial_sparsity=0\.7 must not be above sparsity=0\.5"):
        AutoPruningConfig.for_strategy(strategy, sparsity=0.5, initial_sparsity=0.7)
