"""The trade-off between size and quality, as one training run through it level by level."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PruningError
from ..whole_files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE_FILE = "pruning_curve.json"
MOST_UNITS = 2**20  # of a block; a file that speaks of more is damaged
TIMES = ("runtime", "_per_second", "_time", "epoch")  # how the Trainer's names for what says nothing of quality end
# How names of metrics end of which less is better; "loss" is the Trainer's.
_ERRORS = re.compile(
    r"loss$|(^|[\W_])(perplexity|ppl|nll|bpc|wer|cer|mer|ter|r?mse|s?mape|mae|errors?|error_rate|cross_entropy)$"
)


@dataclass(frozen=True)
class CurveLevel:
    """One size of the model on the way.

    Attributes:
        step: optimizer steps made when it was recorded.
        params, flops: share of the dense model's attention and FFN cost that is left.
        metrics: of the evaluation there, by the Trainer's names; empty without one.
        kept: indices of the units that are on, by block, counted in the dense model.
        folder: where the model of this size lies, an ordinary checkpoint; None if it was not written.
        details: what else the strategy says about it.
    """

    step: int
    params: float
    flops: float
    metrics: Mapping[str, float]
    kept: Mapping[str, tuple[int, ...]]
    folder: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TradeOffCurve:
    """All sizes of one training, the dense model first.

    Attributes:
        strategy: the settings that it was made with.
        kinds: "attention" or "feed_forward", by block.
        levels: the sizes, in the order in which they were reached.
    """

    strategy: Mapping[str, Any]
    kinds: Mapping[str, str]
    levels: tuple[CurveLevel, ...] = ()

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, index: int) -> CurveLevel:
        return self.levels[index]

    def with_level(self, level: CurveLevel) -> TradeOffCurve:
        """The curve with one level more; a level of the same units that was recorded before gives way to it."""
        others = self.levels[:-1] if self.ends_with(level.kept) else self.levels
        return replace(self, levels=(*others, level))

    def ends_with(self, kept: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether these units are those of the last level."""
        return bool(self.levels) and self.levels[-1].kept == kept

    def values(self, metric: str) -> list[float]:
        """A metric at every level; names are the Trainer's, with or without "eval_" before them.

        Raises:
            PruningError: a level without it.
        """
        found = []
        for index, level in enumerate(self.levels):
            name = next((name for name in (metric, f"eval_{metric}") if name in level.metrics), None)
            if name is None:
                raise PruningError(
                    f"Level {index} of the curve has no metric {metric!r}; it has"
                    f" {', '.join(level.metrics) or 'none'}. Evaluate in training: eval_strategy, compute_metrics."
                )
            found.append(float(level.metrics[name]))
        return found

    def metric(self, name: str | None = None) -> tuple[str, bool]:
        """A metric of the levels, and whether more of it is better (see `more_is_better`).

        Args:
            name: the metric; by default the only one there is beside the loss and the evaluation's speed, or the loss.

        Raises:
            PruningError: there are several.
        """
        return chosen_metric(self.levels[0].metrics if self.levels else {}, name)

    def simplest(self, metric: str, max_drop: float, *, greater_is_better: bool = True) -> int:
        """The smallest level whose metric is at most `max_drop` worse than the first level's.

        Raises:
            PruningError: an empty curve, a level without the metric, or a first level whose metric is not a number.
        """
        if not self.levels:
            raise PruningError("The curve is empty: no level has been recorded.")
        sign = 1.0 if greater_is_better else -1.0
        values = [sign * value for value in self.values(metric)]
        if math.isnan(values[0]):
            raise PruningError(f"The first level's {metric} is NaN: there is nothing to compare the others with.")
        able = [index for index, value in enumerate(values) if values[0] - value <= max_drop + 1e-9]
        return min(able, key=lambda index: self.levels[index].params)

    def plot(self, metric: str | None = None, path: str | Path | None = None) -> Figure:
        """Draws the metric over the share removed, see `plot_curves`."""
        from .curve_plots import plot_curves

        return plot_curves({str(self.strategy.get("strategy", "pruned")): self}, metric, path)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form; units that are on are ranges, "0-5,8"."""
        rows = []
        for level in self.levels:
            kept = {key: _ranges_of(units) for key, units in level.kept.items()}
            rows.append({**asdict(level), "kept": kept})
        return {"strategy": dict(self.strategy), "kinds": dict(self.kinds), "levels": rows}

    @classmethod
    def from_dict(cls, data: Any) -> TradeOffCurve:
        """The inverse of `to_dict`.

        Raises:
            PruningError: data of another form.
        """
        try:
            levels = []
            for row in data["levels"]:
                kept = {str(key): _units_in(ranges) for key, ranges in row["kept"].items()}
                levels.append(CurveLevel(**{**row, "kept": kept}))
            return cls(dict(data["strategy"]), dict(data["kinds"]), tuple(levels))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PruningError(f"This is not a trade-off curve as written to {CURVE_FILE}: {error!r}.") from error

    def to_json(self) -> str:
        """The text of `pruning_curve.json`."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> TradeOffCurve:
        """The inverse of `to_json`.

        Raises:
            PruningError: another text.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PruningError(f"This is not a trade-off curve as written to {CURVE_FILE}: {error}.") from error
        return cls.from_dict(data)

    def save(self, folder: str | Path) -> Path:
        """Writes `pruning_curve.json` into a folder; a run that is killed meanwhile leaves the file that was there."""
        path = Path(folder) / CURVE_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> TradeOffCurve:
        """Reads what `save` wrote.

        Raises:
            PruningError: no such file, or one of another form.
        """
        path = Path(folder) / CURVE_FILE
        if not path.is_file():
            raise PruningError(f"{folder} holds no {CURVE_FILE}.")
        return cls.from_json(path.read_bytes())


def chosen_metric(metrics: Mapping[str, float], name: str | None = None) -> tuple[str, bool]:
    """A metric of an evaluation, and whether more of it is better; see `TradeOffCurve.metric`."""
    if name is None:
        known = [key for key in metrics if not key.endswith(("loss", *TIMES))]
        if len(known) > 1:
            raise PruningError(f"The evaluation has the metrics {', '.join(known)}: say which one with metric=.")
        name = known[0] if known else "loss"
    return name, more_is_better(name)


def more_is_better(metric: str) -> bool:
    """Whether more of a metric is better, by its name: not of a loss, an error (wer, cer, mse, …) or perplexity.

    Of what scikit-learn has negated ("neg_mean_squared_error") more is better.
    """
    name = metric.lower().removeprefix("eval_")
    return name.startswith("neg_") or _ERRORS.search(name) is None


_RANGE = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7}))?")


def _ranges_of(units: Sequence[int]) -> str:
    """Ascending numbers as ranges, "0-5,8"."""
    there = set(units)
    starts = [unit for unit in units if unit - 1 not in there]
    ends = [unit for unit in units if unit + 1 not in there]
    return ",".join(f"{start}-{end}" if end > start else f"{start}" for start, end in zip(starts, ends, strict=True))


def _units_in(ranges: str) -> tuple[int, ...]:
    """The inverse of `_ranges_of`."""
    units: list[int] = []
    for part in ranges.split(",") if ranges else []:
        found = _RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not (units[-1] if units else -1) < first <= last < MOST_UNITS:
            raise PruningError(f"{part[:40]!r} is no range of ascending numbers of units below {MOST_UNITS:,}.")
        units += range(first, last + 1)
    return tuple(units)
