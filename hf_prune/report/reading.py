"""A report of whatever kind, from its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .report import PruningReport
from .weight_report import WeightReport


def report_from_dict(data: Mapping[str, Any]) -> PruningReport | WeightReport:
    """The inverse of both kinds' `to_dict`: a report on single weights lists matrices, one on units lists blocks.

    Raises:
        PruningError: fields are missing or unknown, or hold something else than they should.
    """
    if isinstance(data, Mapping) and "matrices" in data:
        return WeightReport.from_dict(data)
    return PruningReport.from_dict(data)
