"""What reports of every kind say, and the checks on one that comes from a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

from ..errors import PruningError

NOT_A_REPORT = "This is not a pruning report as written to pruning_report.json"

# What the numbers are about, and the numbers by name.
NumberGroup = tuple[str, Mapping[str, Any]]


class Report:
    """A report of any kind.

    Attributes:
        model_name: name or path of the dense model.
        model_type: its family.
        strategy: the strategy's name, under "strategy", and settings, as `PruningConfig.to_dict` gives them.
        stages: seconds spent in each stage.
        metrics: `{"dense": {...}, "pruned": {...}}` on the evaluation data, empty without any.
        notes: what a reader should know.
    """

    model_name: str
    model_type: str
    strategy: Mapping[str, Any]
    stages: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]

    @property
    def short_name(self) -> str:
        """The dense model's name without owner or folders."""
        return self.model_name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or self.model_type

    @property
    def strategy_name(self) -> str:
        """The registered name of the strategy."""
        return str(self.strategy["strategy"])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form."""
        return json.loads(json.dumps(asdict(cast(Any, self))))  # every kind of report is a dataclass


@contextmanager
def damage_refused(data: Any) -> Iterator[None]:
    """Turns what goes wrong while a report is made of `data` into a PruningError."""
    if not isinstance(data, Mapping):
        raise PruningError(f"{NOT_A_REPORT}: it is a {type(data).__name__}, not a dictionary.")
    try:
        yield
    except KeyError as error:
        raise PruningError(f"{NOT_A_REPORT}: it lacks {error}.") from error
    except (AttributeError, TypeError) as error:
        raise PruningError(f"{NOT_A_REPORT}: {error}.") from error


def check_report(report: Report, names: Iterable[Any], numbers: Iterable[NumberGroup]) -> None:
    """Refuses a report from a file that would fail only when it is shown.

    Args:
        report: what was made of the file.
        names: what must be text, beside the model's name and type and the notes.
        numbers: what must be numbers, beside stages and metrics; a `latency` may be None.

    Raises:
        PruningError: with the first that is something else.
    """
    if not isinstance(report.strategy, Mapping) or "strategy" not in report.strategy:
        raise PruningError(f"{NOT_A_REPORT}: strategy must hold a 'strategy' name, got {str(report.strategy)[:80]}.")
    for text in (report.model_name, report.model_type, *report.notes, *names):
        if not isinstance(text, str):
            raise PruningError(f"{NOT_A_REPORT}: names and notes must be text, got {str(text)[:80]}.")
    for group, values in (*numbers, ("stages", report.stages), *report.metrics.items()):
        for name, value in values.items():
            optional = name == "latency" and value is None
            if not optional and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise PruningError(f"{NOT_A_REPORT}: {group} {name} must be a number, got {str(value)[:80]!r}.")
