"""Pruning configurations and the only registry: strategy name → (configuration, strategy)."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from huggingface_hub import hf_hub_download
from transformers.utils import PushToHubMixin

from .errors import PruningError
from .module_patterns import matching_names
from .setting_checks import check_counts, check_flags, check_unused

CONFIG_NAME = "pruning_config.json"


@dataclass(frozen=True)
class _Registered:
    """What is known under a strategy's name."""

    config_class: type[PruningConfig]
    one_shot: Any
    training: Any


_REGISTRY: dict[str, _Registered] = {}

ConfigT = TypeVar("ConfigT", bound="PruningConfig")


@dataclass
class PruningConfig(PushToHubMixin):
    """What every strategy's configuration shares; validated when it is made.

    Attributes:
        strategy: the strategy's registered name.
        needs_data: whether it cannot do without calibration data.
        at_once: whether it can prune at one go, as `prune_model` does; otherwise only while a model is trained.
        resumes: whether an interrupted run can go on where it was; others start anew.
        before_training: whether it is for models whose task head has not been trained yet.
        IN_TRAINING: settings that say something only where a model is trained.
    """

    strategy: ClassVar[str] = ""
    needs_data: ClassVar[bool] = True
    at_once: ClassVar[bool] = True
    resumes: ClassVar[bool] = False
    before_training: ClassVar[bool] = False
    IN_TRAINING: ClassVar[tuple[str, ...]] = ()

    @property
    def prunes_weights(self) -> bool:
        """Whether single weights are removed; otherwise heads and filters are."""
        return False

    @property
    def needs_labels(self) -> bool:
        """Whether the calibration data must have labels."""
        return self.needs_data

    @property
    def takes_labels(self) -> bool:
        """Whether labels are used where the calibration data has them."""
        return self.needs_labels

    target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Blocks that may be pruned: each entry is the end of a block's name ('layer.3.attention',"
            " 'attention') or a regular expression for all of it. Default: every block. Where single weights are pruned"
            " the names are those of modules, as for PEFT ('query', 'intermediate.dense')."
        },
    )
    exclude_modules: list[str] | None = field(
        default=None, metadata={"help": "Blocks (modules) that must stay whole, written as in target_modules."}
    )

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, [value])
            elif value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
                raise PruningError(f"{name}={value!r} must be a list of strings.")

    def to_dict(self) -> dict[str, Any]:
        """The settings with the strategy's name, JSON-serialisable."""
        return {"strategy": self.strategy, **asdict(self)}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes `pruning_config.json` into a directory.

        Args:
            save_directory: is made if it is not there.
            kwargs: with `push_to_hub=True` it goes to the Hub, too: `repo_id=` (default: the directory's name) and
                what else `push_to_hub` takes, `private=` for instance.
        """
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        (Path(save_directory) / CONFIG_NAME).write_text(text, encoding="utf8")
        if kwargs.pop("push_to_hub", False):
            self.push_to_hub(kwargs.pop("repo_id", None) or Path(save_directory).name, **kwargs)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **hub_kwargs: Any) -> Self:
        """Reads a configuration from a directory or a Hub repository.

        Raises:
            PruningError: no such file, or settings that this strategy does not have.
        """
        data = _read(name_or_path, hub_kwargs)
        found = AutoPruningConfig.from_dict(data)
        if not isinstance(found, cls):
            raise PruningError(
                f"{name_or_path} holds a {found.strategy!r} configuration, not one for {cls.__name__}."
                " Use AutoPruningConfig.from_pretrained."
            )
        return found

    def targets(self, keys: Sequence[str], default: Collection[str] | None = None) -> set[str]:
        """Which of the blocks or modules named `keys` may be pruned.

        Args:
            keys: all names.
            default: those that are meant where `target_modules` is not set; None for all of them.

        Raises:
            PruningError: a pattern that matches nothing, with near names.
        """
        if self.target_modules is not None:
            wanted = matching_names("target_modules", self.target_modules, keys)
        else:
            wanted = set(keys if default is None else default)
        if self.exclude_modules is not None:
            wanted -= matching_names("exclude_modules", self.exclude_modules, keys)
        return wanted


@dataclass
class StructuredPruningConfig(PruningConfig):
    """A configuration with a budget for structured units; exactly one budget is given.

    `flops` and `params` are fractions of the dense model's attention and FFN cost to keep, `latency` a fraction of
    its end-to-end forward time on this machine.
    """

    flops: float | None = field(default=None, metadata={"help": "Fraction of the attention+FFN FLOPs to keep."})
    params: float | None = field(default=None, metadata={"help": "Fraction of the attention+FFN parameters to keep."})
    latency: float | None = field(
        default=None, metadata={"help": "Fraction of the dense model's forward time to keep, measured on this machine."}
    )
    latency_ms: float | None = field(
        default=None, metadata={"help": "Forward time to reach in milliseconds, measured on this machine."}
    )
    sequence_length: int | None = field(
        default=None,
        metadata={"help": "Tokens per sequence that costs are counted for. Default: the calibration data's mean."},
    )
    latency_batch_size: int = field(default=32, metadata={"help": "Batch size of the forward pass that is timed."})
    batch_size: int = field(default=32, metadata={"help": "Calibration examples per batch, where data comes as rows."})
    round_to: int = field(
        default=8,
        metadata={"help": "Keep widths that are multiples of this: odd ones are slow, GPUs may want 64. 1 for any."},
    )
    uniform: bool = field(default=False, metadata={"help": "Give every layer the same number of heads and of filters."})

    BUDGETS: ClassVar[tuple[str, ...]] = ("flops", "params", "latency", "latency_ms")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {name: getattr(self, name) for name in self.BUDGETS if getattr(self, name) is not None}
        if len(given) != 1:
            raise PruningError(
                f"{type(self).__name__} needs exactly one budget out of {', '.join(self.BUDGETS)}; got"
                f" {', '.join(f'{name}={value}' for name, value in given.items()) or 'none'}."
            )
        _check_budget(*next(iter(given.items())))
        check_counts(self, "batch_size", "latency_batch_size", "round_to", "sequence_length")
        check_flags(self, "uniform")
        budget, _ = self.budget
        if budget in ("heads", "layers"):
            check_unused(self, f"with {budget}=, which counts {budget} and no widths", "round_to", "uniform")

    @property
    def budget(self) -> tuple[str, float]:
        """The budget's keyword and value."""
        return next((name, getattr(self, name)) for name in self.BUDGETS if getattr(self, name) is not None)


def _check_budget(name: str, value: Any) -> None:
    if name in ("sparsity", "heads", "layers", "max_metric_drop"):  # checked where these settings are
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise PruningError(f"{name}={value!r} must be a number above 0.")
    if name != "latency_ms" and value > 1:
        raise PruningError(f"{name}={value} must lie in (0, 1]: it is the fraction of the dense model to keep.")


class AutoPruningConfig:
    """Finds the configuration class of a strategy by name, as transformers' Auto classes do."""

    @staticmethod
    def for_strategy(strategy: str, **settings: Any) -> PruningConfig:
        """The configuration of a registered strategy.

        Raises:
            PruningError: an unknown strategy or setting, with near names.
        """
        return AutoPruningConfig.from_dict({"strategy": strategy, **settings})

    @staticmethod
    def from_dict(data: dict[str, Any]) -> PruningConfig:
        """The inverse of `PruningConfig.to_dict`."""
        settings = dict(data)
        config_class = config_class_of(settings.pop("strategy", None))
        known = [item.name for item in fields(config_class)]
        for name in settings:
            if name not in known:
                raise PruningError(
                    f"The {config_class.strategy!r} strategy has no setting {name!r}{_did_you_mean(name, known)}"
                    f" It has {', '.join(known)}."
                )
        return config_class(**settings)

    @staticmethod
    def from_pretrained(name_or_path: str | os.PathLike[str], **hub_kwargs: Any) -> PruningConfig:
        """Reads the configuration of whatever strategy from a directory or a Hub repository."""
        return AutoPruningConfig.from_dict(_read(name_or_path, hub_kwargs))


def register_strategy(config_class: type[ConfigT], strategy: Any = None, *, training: Any = None) -> None:
    """Makes a strategy known under its configuration's `strategy` name.

    Args:
        config_class: a dataclass derived from `PruningConfig`, with a `strategy` name of its own.
        strategy: what removes heads and filters at one go: a `OneShotStrategy` (see `hf_prune.strategies.base`).
        training: what prunes while a model is trained, and single weights also at one go: a `TrainingStrategy` (see
            `hf_prune.strategies.training`).

    Raises:
        PruningError: the name is empty or taken by another configuration class, or there is no strategy at all.
    """
    name = config_class.strategy
    taken = _REGISTRY.get(name)
    if not name or (taken is not None and taken.config_class is not config_class):
        raise PruningError(f"The strategy name {name!r} of {config_class.__name__} is empty or taken; choose another.")
    if strategy is None and training is None:
        raise PruningError(f"{config_class.__name__} needs a strategy, a training strategy or both.")
    _REGISTRY[name] = _Registered(config_class, strategy, training)


def strategy_names() -> tuple[str, ...]:
    """The registered strategies, in alphabetical order."""
    return tuple(sorted(_REGISTRY))


def config_class_of(name: str | None) -> type[PruningConfig]:
    """The configuration class of a strategy; PruningError with near names if there is none."""
    return _registered(name).config_class


def strategy_for(config: PruningConfig) -> Any:
    """The one-shot strategy that carries a configuration out.

    Raises:
        PruningError: it only works while a model is trained.
    """
    found = _registered(config.strategy).one_shot
    if found is None:
        raise _only_in_training(config)
    return found


def check_at_once(config: PruningConfig) -> None:
    """Raises a PruningError where a strategy works only while a model is trained."""
    if not config.at_once:
        raise _only_in_training(config)


def _only_in_training(config: PruningConfig) -> PruningError:
    return PruningError(
        f"{type(config).__name__} works only while a model is trained: give it to PruningCallback, not to prune_model."
    )


def training_for(config: PruningConfig) -> Any:
    """The strategy that carries a configuration out while a model is trained.

    Raises:
        PruningError: it does not work while a model is trained.
    """
    found = _registered(config.strategy).training
    if found is None:
        able = ", ".join(name for name in strategy_names() if _REGISTRY[name].training is not None)
        raise PruningError(
            f"{type(config).__name__} prunes at one go: give it to prune_model, and train the pruned model. While a"
            f" model is trained, these strategies prune it: {able}."
        )
    return found


def _registered(name: str | None) -> _Registered:
    if name not in _REGISTRY:
        known = strategy_names()
        raise PruningError(
            f"Unknown pruning strategy {name!r}{_did_you_mean(str(name), known)} Known: {', '.join(known)}."
        )
    return _REGISTRY[str(name)]


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _read(name_or_path: str | os.PathLike[str], hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    path = Path(name_or_path) / (hub_kwargs.get("subfolder") or "") / CONFIG_NAME
    if not Path(name_or_path).is_dir():
        path = Path(hf_hub_download(str(name_or_path), CONFIG_NAME, **hub_kwargs))
    if not path.is_file():
        raise PruningError(f"{name_or_path} holds no {CONFIG_NAME}.")
    data = json.loads(path.read_text(encoding="utf8"))
    if not isinstance(data, dict):
        raise PruningError(f"{path} must hold a JSON object, got {type(data).__name__}.")
    return data
