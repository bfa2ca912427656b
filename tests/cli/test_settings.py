"""One option for a setting that several strategies have, with what each of them says of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

import pytest

from hf_prune import config as config_module
from hf_prune import register_strategy
from hf_prune.commands.settings import Setting, settings_at_once
from hf_prune.config import PruningConfig, config_class_of, strategy_names


@dataclass
class _Warm(PruningConfig):
    strategy: ClassVar[str] = "warm"

    pace: int = field(default=10, metadata={"help": "Steps between two looks."})
    heat: float = field(default=0.0, metadata={"help": "Degrees."})


@dataclass
class _Warmer(_Warm):
    strategy: ClassVar[str] = "warmer"

    pace: int | None = field(default=None, metadata={"help": "Steps between two strides."})


@dataclass
class _Trained(PruningConfig):
    strategy: ClassVar[str] = "trained"
    at_once: ClassVar[bool] = False

    patience: int = field(default=3, metadata={"help": "Of trainers."})


def found() -> dict[str, Setting]:
    return {setting.item.name: setting for setting in settings_at_once()}


def test_settings_are_told_by_strategy_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "_REGISTRY", {})
    for kind in (_Warm, _Warmer, _Trained):
        register_strategy(kind, "a strategy")
    settings = found()
    assert settings["pace"].help_text == (
        "With warm: Steps between two looks. With warmer: Steps between two strides. Default: 10 (warm), none (warmer)."
    )
    assert settings["heat"].help_text == "Degrees. Default: 0.0."
    assert settings["exclude_modules"].annotated == list[str] | None
    assert "patience" not in settings
    assert not any(setting.budget for setting in settings.values())


def test_a_setting_of_some_strategies_names_them() -> None:
    settings = found()
    assert settings["pattern"].help_text.endswith("(Strategy: magnitude, movement, random.)")
    assert settings["solver"].help_text.endswith("Default: direct. (Strategy: fisher.)")
    assert "Strategy:" not in settings["target_modules"].help_text


def test_budgets_come_first_and_sparsity_is_one() -> None:
    settings = settings_at_once()
    budgets = [setting.item.name for setting in settings if setting.budget]
    assert budgets == ["flops", "params", "latency", "latency_ms", "max_metric_drop", "heads", "layers", "sparsity"]
    assert [setting.item.name for setting in settings[: len(budgets)]] == budgets


def test_every_setting_is_there_but_those_of_a_training() -> None:
    settings = found()
    for strategy in strategy_names():
        config = config_class_of(strategy)
        for item in fields(config):
            if config.at_once and item.name not in config.IN_TRAINING:
                assert item.name in settings
    assert not settings.keys() & {"begin", "frequency", "score_learning_rate", "gate_learning_rate", "theta", "masking"}
