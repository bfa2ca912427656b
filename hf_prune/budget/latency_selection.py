"""A budget on the measured forward time: search on tables, measure the cut model, correct, repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy, UndoLog, cut_model, give_own_tables
from ..config import StructuredPruningConfig
from ..errors import InfeasibleBudgetError
from .latency import compare_with_undone
from .latency_search import search_latency_units
from .latency_table import LatencyConditions, latency_tables
from .search import SearchResult
from .targets import Selection, Targets

# Measurements scatter by a few percent, so the search aims a little below what was asked for, and takes a cut whose
# measured latency is within this factor of its aim.
LATENCY_AIM = 0.97
LATENCY_TOLERANCE = 1.02
LATENCY_ROUNDS = 8
LATENCY_REPEATS = 9


def select_by_latency(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    targets: Targets,
    config: StructuredPruningConfig,
    sequence_length: int,
) -> Selection:
    """Chooses the units that stay under a latency budget.

    The tables say how time divides over blocks; the forward pass of the cut model says whether the sum is right.

    Args:
        model: the dense model, which is cut to be measured, and whole again in the end.
        anatomy: from `describe_model(model)`.
        targets: the blocks that may be pruned, and their scores.
        config: budget and restrictions.
        sequence_length: tokens of the batch that is timed.

    Raises:
        InfeasibleBudgetError: with about the smallest latency that can be reached.
    """
    conditions = LatencyConditions.of(model, config.latency_batch_size, sequence_length)
    tables = latency_tables(model, anatomy, conditions)
    cut = _CutTimer(model, anatomy, conditions)
    frame = _LatencyFrame.of(cut, anatomy, targets, tables, config)
    budget = frame.budget
    trials: list[_LatencyTrial] = []
    for _ in range(LATENCY_ROUNDS):
        try:
            result = _latency_result(frame, targets, tables, config, budget)
        except InfeasibleBudgetError:
            if not trials:
                raise
            break  # corrected below what can be reached: the cuts tried so far are what there is
        selection = targets.selection(result)
        dense, seconds = cut.seconds(selection.masks)
        if seconds <= LATENCY_TOLERANCE * frame.target(dense):
            # The fastest of several scattered measurements is a lucky one: what is to be taken is measured twice.
            dense, seconds = max(
                (dense, seconds), cut.seconds(selection.masks), key=lambda pair: pair[1] / frame.target(pair[0])
            )
        target = frame.target(dense)
        trials.append(_LatencyTrial(seconds / target, result.score_kept, selection))
        if abs(trials[-1].ratio - 1) <= LATENCY_TOLERANCE - 1 or (trials[-1].ratio < 1 and _keeps_all(selection.masks)):
            break
        budget = max(budget + (target - seconds) * frame.scale, budget / 4)
    return _best_trial(trials)


@dataclass(frozen=True)
class _LatencyFrame:
    """How seconds in the tables relate to the latency that was asked for.

    Attributes:
        keyword, value: the budget as the user gave it.
        dense, empty: measured seconds of the dense model, and of the model without any unit.
        fixed: table seconds of the blocks that are not to be chosen.
        scale: table seconds per measured second: both must agree on what the blocks cost together.
    """

    keyword: str
    value: float
    dense: float
    empty: float
    fixed: float
    scale: float

    @classmethod
    def of(
        cls,
        cut: _CutTimer,
        anatomy: ModelAnatomy,
        targets: Targets,
        tables: Mapping[str, torch.Tensor],
        config: StructuredPruningConfig,
    ) -> _LatencyFrame:
        """Measures the extremes; InfeasibleBudgetError if not even an empty model is fast enough."""
        dense, empty = cut.seconds_of_extremes()
        everything = sum(float(tables[block.key][-1]) for block in anatomy.blocks)
        fixed = sum(float(tables[block.key][targets.fixed_units(block)]) for block in targets.fixed)
        frame = cls(*config.budget, dense, empty, fixed, everything / max(dense - empty, 1e-12))
        if frame.budget <= 0:
            raise frame.infeasible(0.0)
        return frame

    def target(self, dense: float) -> float:
        """The seconds to aim for, given the dense model's."""
        return LATENCY_AIM * (self.value * dense if self.keyword == "latency" else self.value / 1000)

    @property
    def budget(self) -> float:
        """Table seconds for the blocks that may be pruned."""
        return (self.target(self.dense) - self.empty) * self.scale - self.fixed

    def infeasible(self, table_seconds: float) -> InfeasibleBudgetError:
        """The error for a budget below what the units that must stay take, in the user's unit."""
        seconds = (self.empty + (self.fixed + table_seconds) / max(self.scale, 1e-12)) / LATENCY_AIM
        smallest = seconds / self.dense if self.keyword == "latency" else seconds * 1000
        return InfeasibleBudgetError(
            f"{self.keyword}={self.value:.4g} is out of reach: the smallest reachable value is about {smallest:.4g}"
            " (everything that must stay). Raise the budget, or give a latency_batch_size and sequence_length at which"
            " attention and FFN weigh more.",
            smallest,
        )


@dataclass(frozen=True)
class _LatencyTrial:
    """One searched and measured cut: measured over asked latency, the score it keeps, and the cut."""

    ratio: float
    score: float
    selection: Selection


def _keeps_all(masks: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(mask.all()) for mask in masks.values())


def _best_trial(trials: Sequence[_LatencyTrial]) -> Selection:
    """The highest score among the cuts that are fast enough, or the fastest cut, with a note, if none is."""
    fast_enough = [trial for trial in trials if trial.ratio <= LATENCY_TOLERANCE]
    if fast_enough:
        return max(fast_enough, key=lambda trial: trial.score).selection
    fastest = min(trials, key=lambda trial: trial.ratio)
    fastest.selection.notes.append(
        f"The measured latency is {fastest.ratio:.2f} × the asked one after {len(trials)} rounds of correction."
    )
    return fastest.selection


def _latency_result(
    frame: _LatencyFrame,
    targets: Targets,
    tables: Mapping[str, torch.Tensor],
    config: StructuredPruningConfig,
    budget: float,
) -> SearchResult:
    try:
        return search_latency_units(
            targets.head_scores,
            targets.filter_scores,
            [tables[block.key] for block in targets.heads],
            [tables[block.key] for block in targets.filters],
            budget,
            **targets.options(config),
        )
    except InfeasibleBudgetError as error:
        raise frame.infeasible(error.smallest) from error


class _CutTimer:
    """Times the model whole and cut, in turn, on the model itself; every cut is rolled back."""

    def __init__(self, model: PreTrainedModel, anatomy: ModelAnatomy, conditions: LatencyConditions) -> None:
        self._model = model
        self._anatomy = anatomy
        self._conditions = conditions

    def seconds_of_extremes(self) -> tuple[float, float]:
        """Median seconds of the dense model and of the model without any unit."""
        return self.seconds({block.key: torch.zeros(block.units, dtype=torch.bool) for block in self._anatomy.blocks})

    def seconds(self, masks: Mapping[str, torch.Tensor]) -> tuple[float, float]:
        """Median seconds of the dense model and of the model cut to `masks`."""
        batch_size, sequence_length = self._conditions.batch_size, self._conditions.sequence_length
        log = UndoLog()
        try:
            cut = {key for key, mask in masks.items() if not mask.all()}
            give_own_tables(self._model, self._anatomy.blocks, cut, log)
            units = {key: mask.nonzero().flatten().tolist() for key, mask in masks.items()}
            cut_model(self._model, self._anatomy.blocks, units, log)
            return compare_with_undone(self._model, log, batch_size, sequence_length, repeats=LATENCY_REPEATS)
        finally:
            log.roll_back()
