"""What a strategy is that prunes while a model is trained."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..anatomy import inner_model
from ..calibration import CalibrationData
from ..config import PruningConfig
from ..errors import PruningError
from ..offloading import device_of
from ..report.result import PruningResult
from ..scores import PruningSchedule
from ..shards import has_shards
from ..weight_config import ScheduledPruningConfig, TimedPruningConfig

logger = logging.getLogger(__name__)


class TrainingPruner(ABC):
    """A strategy at work on one model, from before the first step of an optimizer to after the last one.

    It adds nothing to the model that an optimizer, a scheduler or a wrapper (DDP, `torch.compile`) would have to know
    of, so it can be made before or after these. `begin` or, to go on with an interrupted run, `load_state` comes
    first; then it follows an optimizer; `finish` leaves a clean model.

    Attributes:
        model: the model as it was given, maybe inside a PEFT model.
        config: what was asked for.
        steps: optimizer steps of the whole training; 0 for pruning at one go.
        step: how many have been made.
        followed: torch's optimizer that it follows, if it does.

    Raises:
        PruningError: the model is sharded (FSDP2), and the strategy needs whole matrices.
    """

    takes_shards: ClassVar[bool] = False

    def __init__(self, model: Any, config: Any, steps: int) -> None:
        if not self.takes_shards and has_shards(model):
            raise PruningError(
                f"{type(config).__name__} does not work here on a model that fully_shard (FSDP2) has sharded; single"
                " weights can be pruned by magnitude, movement or a static mask without an adapter, at random, or"
                " held. Train with DDP."
            )
        self.model, self.config, self.steps = model, config, steps
        self.step = 0
        self._last_made = 0
        self._device = device_of(self.inner)
        self._handles: list[RemovableHandle] = []
        self.followed: torch.optim.Optimizer | None = None

    @property
    def inner(self) -> PreTrainedModel:
        """The Transformers model, without PEFT's wrapper."""
        return inner_model(self.model)

    def calibrate(self, data: CalibrationData) -> None:
        """Learns from calibration data what pruning at one go needs; strategies that need none do nothing."""
        del data

    @abstractmethod
    def begin(self) -> None:
        """Prunes what is to be pruned before the first step."""

    def before_step(self) -> None:  # noqa: B027
        """Does what comes just before a step of the optimizer: it may take gradients away."""

    @abstractmethod
    def after_step(self) -> None:
        """Does what follows a step of the optimizer; `step` has been counted."""

    def follow(self, optimizer: Any) -> None:
        """Works after every step of an optimizer: one of torch's, or Accelerate's wrapper around it.

        Raises:
            PruningError: it has no hooks for its steps, or is DeepSpeed's, which writes the weights after them; or the
                model has been moved to another device meanwhile.
        """
        device = device_of(self.inner)
        if device != self._device:
            raise PruningError(
                f"The model was on {self._device} when pruning began and is on {device} now; masks and scores stayed"
                " behind. Move it first: model.to(accelerator.device), then start_pruning."
            )
        if type(optimizer).__name__.startswith("DeepSpeed"):
            raise PruningError("Pruning while training under DeepSpeed is not supported. Train with DDP instead.")
        inner = optimizer
        while not hasattr(inner, "register_step_post_hook") or _is_wrapper(inner):
            inner = getattr(inner, "optimizer", None)
            if inner is None:
                raise PruningError(
                    f"{type(optimizer).__name__} is no torch.optim.Optimizer: its steps cannot be followed."
                )
        self.let_go()
        if getattr(optimizer, "scaler", None) is not None:  # one that was given before stays
            self.take_scaler(optimizer.scaler)
        self.followed = inner
        self._handles = [
            inner.register_step_pre_hook(self._stepping),
            inner.register_step_post_hook(self._stepped),
        ]

    def take_scaler(self, scaler: Any) -> None:
        """Gets the gradient scaler of mixed precision in float16, or None; for strategies that read gradients."""
        del scaler

    def _stepping(self, optimizer: torch.optim.Optimizer, *unused: Any) -> None:
        if not _is_given_up(optimizer):
            self.before_step()

    def _stepped(self, optimizer: torch.optim.Optimizer, *unused: Any) -> None:
        if _is_given_up(optimizer):
            return
        self.step += 1
        self.after_step()
        self._last_made = self.step

    def _is_due(self, schedule: PruningSchedule) -> bool:
        """Whether masks are made anew after this step, or should have been after one that mixed precision gave up."""
        return any(schedule.due(step) for step in range(self._last_made + 1, self.step + 1))

    def let_go(self) -> None:
        """Stops following the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    @abstractmethod
    def reached(self) -> bool:
        """Whether the model is as sparse or as small as it was asked to become."""

    @abstractmethod
    def logs(self) -> dict[str, float]:
        """How far it is, for a training log."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """What going on after an interruption takes, beside the model's weights, as named tensors."""

    @abstractmethod
    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """The inverse of `state`, for a model that has the weights of that moment already.

        Raises:
            PruningError: the tensors do not fit the model.
        """

    def go_on(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Takes up the state of a checkpoint that was written after `step` steps; raises as `load_state` does."""
        self.load_state(tensors, step)
        self._last_made = step

    @abstractmethod
    def finish(self) -> PruningResult:
        """Takes everything off the model but what was pruned, and says what that is."""

    @abstractmethod
    def abandon(self, *, restore: bool = True) -> None:
        """Takes everything off the model, and brings back what was pruned where that is still possible.

        Args:
            restore: False where other weights have been loaded into the model by now; they stay as they are.
        """


class TrainingStrategy(Protocol):
    """Makes a `TrainingPruner`; nothing has happened to the model yet.

    Raises:
        PruningError: the configuration does not fit the model.
    """

    def __call__(self, model: Any, config: Any, steps: int) -> TrainingPruner:
        """A pruner for `steps` optimizer steps, or with 0 for one go."""
        ...


def schedule_of(
    config: ScheduledPruningConfig, steps: int, initial: float, final: float, power: int = 3
) -> PruningSchedule:
    """The schedule of a configuration in a training of `steps` optimizer steps; with 0 everything happens at once.

    Warns where training ends before the schedule does.
    """
    schedule = PruningSchedule(*first_and_last_step(config, steps), config.frequency, initial, final, power)
    if steps and schedule.end > steps:
        logger.warning(
            "The pruning schedule of %s ends at step %d, but training does at step %d: it will get to %.4g instead of"
            " %.4g. Lower end=%s, or train longer.",
            type(config).__name__,
            schedule.end,
            steps,
            schedule.last_value(steps),
            final,
            config.end,
        )
    return schedule


def first_and_last_step(config: TimedPruningConfig, steps: int) -> tuple[int, int]:
    """`begin` and `end` as numbers of steps, in a training of `steps` optimizer steps; with 0 both are 0."""
    start, end = (_step_of(value, steps) if steps else 0 for value in (config.begin, config.end))
    return start, max(start, end)


def check_trains(config: PruningConfig, steps: int) -> None:
    """Raises a PruningError where the number of training steps is unknown or none."""
    if steps < 1:
        raise PruningError(
            f"{type(config).__name__} needs to know how many optimizer steps the training has, got {steps}."
        )


def _step_of(value: float, steps: int) -> int:
    """A setting that is a fraction of the training up to 1, and a number of steps above."""
    return round(value * steps) if value <= 1 else round(value)


def _is_given_up(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step is none, because gradients have overflowed in float16.

    A gradient scaler does not call other optimizers then; a fused one is told, and finds out on the device.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found.any())


def _is_wrapper(optimizer: Any) -> bool:
    """Accelerate's optimizer derives from torch's but is never made as one, so its own hooks do not work."""
    return isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer)
