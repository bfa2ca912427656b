"""Limits as they are shown to people."""

from __future__ import annotations

import math


def rounded_up(value: float, digits: int = 4) -> str:
    """A smallest value in decimals, none of them below it, so that what is shown can be asked for."""
    scale = 10**digits
    return f"{math.ceil(value * scale) / scale:.{digits}f}"
