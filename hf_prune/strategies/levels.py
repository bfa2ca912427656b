"""What strategies share that pass through many sizes in one training, and record each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from ..anatomy import ModelAnatomy
from ..errors import PruningError
from ..report.curve import TIMES, CurveLevel, TradeOffCurve
from ..report.result import PruningResult
from ..surgery import PruningPlan
from .masked_units import MaskedUnitsPruner

LEVELS_FOLDER = "pruning_levels"
_CURVE, _DUE = "curve", "level_due"


class LevelsPruner(MaskedUnitsPruner):
    """A training that gives a whole trade-off curve; its result is the last level, or the one that a metric chooses.

    The configuration has `max_metric_drop`, which may be None, and `metric`.

    Attributes:
        curve: the levels recorded so far.
        level_due: whether the model is at a level that is complete and not recorded: evaluate it, and call
            `record_level`.
        folder: where levels and curve are written; None to write nothing.
        dense_rows: the blocks of the dense model, with what a unit of each costs.
    """

    def __init__(self, model: Any, config: Any, steps: int, anatomy: ModelAnatomy, *, with_bias: bool = False) -> None:
        super().__init__(model, config, steps, anatomy, with_bias=with_bias)
        self.curve = TradeOffCurve(config.to_dict(), {block.key: block.kind for block in anatomy.blocks})
        self.level_due = False
        self.dense_rows = self.rows
        self._dense_costs = self._costs_of([row.dense_units for row in self.dense_rows])
        self.folder: Path | None = None
        self._decider: tuple[str, bool] | None = None

    @property
    def shares(self) -> tuple[float, float]:
        """The shares of the dense model's attention and FFN parameters and FLOPs that are on."""
        parameters, flops = self._costs_of([int(mask.count_nonzero()) for mask in self.units])
        return parameters / self._dense_costs[0], flops / self._dense_costs[1]

    def _costs_of(self, counts: Sequence[int]) -> tuple[int, int]:
        pairs = list(zip(self.dense_rows, counts, strict=True))
        return sum(count * row.parameters_per_unit for row, count in pairs), sum(row.flops(n) for row, n in pairs)

    @property
    def kept(self) -> Mapping[str, tuple[int, ...]]:
        """The indices of the units that are on, by block."""
        return PruningPlan.from_masks(self.anatomy.blocks, self.units).kept

    @property
    def level_details(self) -> dict[str, Any]:
        """What else is to be said about a level."""
        return {}

    def record_level(self, metrics: Mapping[str, Any] | None = None, *, write: bool = True) -> None:
        """Adds the model as it is to the curve, before the next training step.

        Args:
            metrics: of its evaluation; what is no number, or says how long it took, is left out.
            write: False in all processes but one.

        Raises:
            PruningError: a metric is to choose the level, and there is no folder for the levels, or the level before
                has no such metric.
        """
        self._check_choice()
        self.level_due = False
        parameters, flops = self.shares
        level = CurveLevel(self.step, parameters, flops, _numbers(metrics), self.kept, None, self.level_details)
        if self.folder is not None:
            number = len(self.curve.with_level(level)) - 1
            level = replace(level, folder=f"{LEVELS_FOLDER}/level-{number:02d}")
        self.curve = self.curve.with_level(level)
        if self.folder is not None and write:
            self._copy_of_model().model.save_pretrained(self.folder / str(level.folder))
            self.curve.save(self.folder)

    def add_metrics(self, metrics: Mapping[str, Any], *, write: bool = True) -> None:
        """Adds what another evaluation of the level gave that has just been recorded; without one nothing happens."""
        if len(self.curve) and self.curve[-1].step == self.step:
            level = self.curve[-1]
            self.curve = self.curve.with_level(replace(level, metrics={**level.metrics, **_numbers(metrics)}))
            if self.folder is not None and write:
                self.curve.save(self.folder)

    def decide_by(self, metric: str, greater_is_better: bool) -> None:
        """Says which metric chooses the level, unless the configuration names another one."""
        if self.config.metric is None or self.config.metric.removeprefix("eval_") == metric.removeprefix("eval_"):
            self._decider = metric, greater_is_better

    def _check_choice(self) -> None:
        """Refuses early what would only show once training has ended."""
        if self.config.max_metric_drop is None:
            return
        if self.folder is None:
            raise PruningError(
                f"max_metric_drop={self.config.max_metric_drop} takes the weights of an earlier level, so levels must"
                " be written: set the pruner's folder before the first one is recorded."
            )
        if len(self.curve):
            self.curve.values(self._deciding()[0])

    def _deciding(self) -> tuple[str, bool]:
        return self._decider or self.curve.metric(self.config.metric)

    def _copy_of_model(self) -> PruningResult:
        """The model of this size, cut, beside the one that is trained."""
        model = self.inner
        with torch.random.fork_rng(devices=[]):  # drawing weights must not change the training
            twin = type(model)(type(model.config).from_dict(model.config.to_dict()))
        twin.to(device=model.device, dtype=model.dtype).load_state_dict(model.state_dict())
        if model.can_generate():
            twin.generation_config = copy.deepcopy(model.generation_config)
        return self.cut(twin.eval(), self.units)

    def take_off(self) -> None:
        """Takes off the model what a strategy has put on it beside the masks."""

    def finish(self) -> PruningResult:
        """A smaller model: that of the last level, or of the smallest one whose metric has not dropped too far."""
        level = self._chosen()
        weights = None if level is None or level.step == self.step else self._weights_of(level)
        self.take_off()
        if level is None or weights is None:
            result = super().finish()
        else:
            self.let_go()
            self.masks.remove(restore=True)
            self.units = PruningPlan(level.kept).masks(self.anatomy.blocks)
            result = self.cut(self.inner, self.units)
            self.inner.load_state_dict(weights)
        result.curve = self.curve
        return result

    def _chosen(self) -> CurveLevel | None:
        """The level that a limit on the metric's drop chooses."""
        if self.config.max_metric_drop is None or not len(self.curve):
            return None
        name, greater = self._deciding()
        return self.curve[self.curve.simplest(name, self.config.max_metric_drop, greater_is_better=greater)]

    def _weights_of(self, level: CurveLevel) -> dict[str, torch.Tensor]:
        """The weights of a level, which has been written."""
        path = None if self.folder is None or level.folder is None else self.folder / level.folder
        if path is None or not path.is_dir():
            raise PruningError(
                f"max_metric_drop={self.config.max_metric_drop} chooses the model of step {level.step}, whose weights"
                f" are not in {path or 'any folder'}. If training was resumed in another folder, copy {LEVELS_FOLDER}"
                " there; in a loop of your own set the pruner's folder."
            )
        stored = type(self.inner).from_pretrained(path, dtype=self.inner.dtype)
        return stored.state_dict()

    def state(self) -> dict[str, torch.Tensor]:
        """The masks, and the curve."""
        curve = torch.frombuffer(bytearray(self.curve.to_json().encode()), dtype=torch.uint8)
        return super().state() | {_CURVE: curve, _DUE: torch.tensor(self.level_due)}

    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Goes on where `state` was taken."""
        if _CURVE not in tensors or _DUE not in tensors:
            raise PruningError("The stored state has no trade-off curve: it is another strategy's.")
        self.curve = TradeOffCurve.from_json(bytes(tensors[_CURVE].tolist()))
        super().load_state(tensors, step)
        self.level_due = bool(tensors[_DUE])


def _numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    said = {name: value for name, value in (metrics or {}).items() if not name.endswith(TIMES)}
    return {name: float(value) for name, value in said.items() if isinstance(value, Real)}
