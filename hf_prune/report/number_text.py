"""Numbers as people read them: three significant digits with a unit, shares, differences."""

from __future__ import annotations

import math

MISSING = "–"

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count_text(number: float) -> str:
    """A count: exact below a thousand, then three digits and a prefix (`21.3 M`)."""
    rounded = float(f"{number:.2e}") if math.isfinite(number) else number
    if abs(rounded) < 1000 or not math.isfinite(number):
        return f"{number:.3g}"
    scale, prefix = next((scale, prefix) for scale, prefix in _PREFIXES if abs(rounded) >= scale)
    return f"{_three_digits(rounded / scale)} {prefix}"


def seconds_text(seconds: float) -> str:
    """A duration given in seconds, with the unit that suits it (`789 µs`, `45.6 ms`, `12.3 s`, `2 min 05 s`)."""
    rounded = float(f"{seconds:.2e}")
    if rounded < 1e-3:
        return f"{_three_digits(seconds * 1e6)} µs" if seconds else "0 s"
    if rounded < 1:
        return f"{_three_digits(seconds * 1e3)} ms"
    if rounded < 60:
        return f"{_three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def share_text(part: float, whole: float) -> str:
    """`part` of `whole` in percent, or a dash if there is nothing to have a share of."""
    return f"{100 * part / whole:.1f} %" if whole else MISSING


def speedup_text(dense: float, pruned: float) -> str:
    """How much faster the pruned model is, from two durations in the same unit."""
    if dense <= 0 or pruned <= 0:
        return MISSING
    if f"{dense / pruned:.2f}" == "1.00":
        return "as fast"
    return f"{dense / pruned:.2f}× faster" if dense > pruned else f"{pruned / dense:.2f}× slower"


def metric_texts(dense: float | None, pruned: float | None) -> tuple[str, str, str]:
    """A metric of the dense and of the pruned model and their difference, all with the same number of decimals.

    The larger of the two gets four significant digits. What was not measured is a dash.
    """
    known = [abs(value) for value in (dense, pruned) if value is not None and math.isfinite(value) and value != 0]
    decimals = min(8, max(0, 3 - math.floor(math.log10(max(known))))) if known else 4
    difference = f"{pruned - dense:+.{decimals}f}" if dense is not None and pruned is not None else MISSING
    dense_text, pruned_text = (MISSING if value is None else f"{value:.{decimals}f}" for value in (dense, pruned))
    return dense_text, pruned_text, difference


def _three_digits(number: float) -> str:
    """A number from 1 to 1000 with three significant digits, trailing zeros kept."""
    magnitude = math.floor(math.log10(abs(float(f"{number:.2e}"))))
    return f"{number:.{max(0, 2 - magnitude)}f}"
