from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.report.number_text import count_text, metric_texts, seconds_text, share_text, speedup_text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00 k"),
        (12_345, "12.3 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (21_300_000, "21.3 M"),
        (1_234_000_000, "1.23 G"),
        (5.6e12, "5.60 T"),
        (7.8e16, "78000 T"),
    ],
)
def test_counts(number: float, text: str) -> None:
    assert count_text(number) == text


@given(st.integers(1000, 10**15 - 10**12))
def test_a_count_is_right_to_three_digits(number: int) -> None:
    digits, prefix = count_text(number).split()
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[prefix]
    assert float(digits) * scale == pytest.approx(number, rel=5.1e-3)
    assert 1 <= float(digits) < 1000
    assert len(digits.replace(".", "")) == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.000_012_3, "12.3 µs"),
        (0.000_789, "789 µs"),
        (0.000_999_9, "1.00 ms"),
        (0.0456, "45.6 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125.4, "2 min 05 s"),
        (3600, "60 min 00 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@given(st.floats(1e-7, 1e4))
def test_a_duration_is_right_to_three_digits(seconds: float) -> None:
    text = seconds_text(seconds)
    units = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
    total = sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+) (\S+)", text))
    assert total == pytest.approx(seconds, rel=5.1e-3, abs=0.5 if seconds > 59 else 0)


def test_shares() -> None:
    assert share_text(1, 3) == "33.3 %"
    assert share_text(3, 3) == "100.0 %"
    assert share_text(0, 0) == "–"


@pytest.mark.parametrize(
    ("dense", "pruned", "text"),
    [
        (2.0, 1.0, "2.00× faster"),
        (1.0, 1.25, "1.25× slower"),
        (1.0, 0.999, "as fast"),
        (1.0, 1.001, "as fast"),
        (1.0, 0.0, "–"),
    ],
)
def test_speed_ups(dense: float, pruned: float, text: str) -> None:
    assert speedup_text(dense, pruned) == text


@pytest.mark.parametrize(
    ("dense", "pruned", "texts"),
    [
        (0.8968, 0.88991, ("0.8968", "0.8899", "-0.0069")),
        (89.68, 90.0, ("89.68", "90.00", "+0.32")),
        (1.0, 0.5, ("1.000", "0.500", "-0.500")),
        (12_345.6, 12_000.0, ("12346", "12000", "-346")),
        (-0.25, 0.0, ("-0.2500", "0.0000", "+0.2500")),
        (0.0, 0.0, ("0.0000", "0.0000", "+0.0000")),
        (0.5, None, ("0.5000", "–", "–")),
        (None, 0.5, ("–", "0.5000", "–")),
        (None, None, ("–", "–", "–")),
        (0.5, float("nan"), ("0.5000", "nan", "+nan")),
    ],
)
def test_metrics(dense: float | None, pruned: float | None, texts: tuple[str, str, str]) -> None:
    assert metric_texts(dense, pruned) == texts
