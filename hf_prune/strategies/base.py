"""What a one-shot strategy is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy
from ..budget import Lengths
from ..calibration import CalibrationData
from ..recovery import Repair
from ..report.clock import StageClock
from ..surgery import PruningPlan

StatisticsT = TypeVar("StatisticsT")


@dataclass(frozen=True)
class Cut:
    """A strategy's decision; nothing has happened to the model yet.

    Attributes:
        plan: which units stay.
        lengths: tokens that costs were counted for; a number is what every block sees.
        repairs: new output projections on the kept units, by block key.
        notes: what a reader of the report should know.
    """

    plan: PruningPlan
    lengths: int | Lengths
    repairs: Mapping[str, Repair] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def sequence_length(self) -> int:
        """Tokens per example, in one number."""
        return self.lengths.tokens if isinstance(self.lengths, Lengths) else self.lengths


class OneShotStrategy(Protocol):
    """Decides a cut from a model and calibration data, without changing the model."""

    def __call__(
        self, model: PreTrainedModel, anatomy: ModelAnatomy, config: Any, data: CalibrationData, clock: StageClock
    ) -> Cut:
        """The cut that `config` asks for."""
        ...


def unrepaired(
    model: PreTrainedModel, anatomy: ModelAnatomy, config: Any, data: CalibrationData, clock: StageClock, cut: Cut
) -> Cut:
    """The cut as it is, for strategies that repair nothing."""
    return cut


@dataclass(frozen=True)
class StagedStrategy(Generic[StatisticsT]):
    """A one-shot strategy in stages, so that what it measures on a model serves as many budgets as are asked for.

    Every stage is called with what a `OneShotStrategy` is called with, and changes neither the model nor what an
    earlier stage has found.

    Attributes:
        measure: what there is to know of the model whatever the budget; the budget in the configuration must not
            matter.
        choose: gets that as well; the cut for the budget of the configuration, without repairs unless the choice rests
            on them.
        repair: gets that cut as well; the same with its repairs.
    """

    measure: Callable[[PreTrainedModel, ModelAnatomy, Any, CalibrationData, StageClock], StatisticsT]
    choose: Callable[[PreTrainedModel, ModelAnatomy, Any, CalibrationData, StageClock, StatisticsT], Cut]
    repair: Callable[[PreTrainedModel, ModelAnatomy, Any, CalibrationData, StageClock, Cut], Cut] = unrepaired

    def __call__(
        self, model: PreTrainedModel, anatomy: ModelAnatomy, config: Any, data: CalibrationData, clock: StageClock
    ) -> Cut:
        """The cut that `config` asks for. The statistics are dropped before the repair, which needs the memory."""
        statistics = self.measure(model, anatomy, config, data, clock)
        cut = self.choose(model, anatomy, config, data, clock, statistics)
        del statistics
        return self.repair(model, anatomy, config, data, clock, cut)
