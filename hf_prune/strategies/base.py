"""What a one-shot strategy is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy
from ..budget import Lengths
from ..calibration import CalibrationData
from ..recovery import Repair
from ..report.clock import StageClock
from ..surgery import PruningPlan


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
