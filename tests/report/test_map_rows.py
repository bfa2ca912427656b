from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.report import BlockReport
from hf_prune.report.map_rows import kept_shares, short_labels, units_per_bin


def block(units: int, kept: tuple[int, ...]) -> BlockReport:
    return BlockReport("0.ffn", "feed_forward", units, len(kept), kept, 1, 1)


@pytest.mark.parametrize(
    ("keys", "pattern", "labels"),
    [
        (["encoder.layer.0.attention", "encoder.layer.10.attention"], "encoder.layer.*.attention", ["0", "10"]),
        (["encoder.layer.0.attention", "encoder.layer.0.ffn"], "encoder.layer.0.*", ["attention", "ffn"]),
        (
            ["encoder.layer.0.attention", "encoder.layer.1.ffn"],
            "encoder.layer.*",
            ["0.attention", "1.ffn"],
        ),
        (["a.x", "b.y"], "*", ["a.x", "b.y"]),
        (["h.0", "h.0.mlp"], "h.*", ["0", "0.mlp"]),
        (["a.a", "a.b.a"], "a.*", ["a", "b.a"]),
        (["layer.0.attention"], "*", ["layer.0.attention"]),
        ([], "*", []),
    ],
)
def test_labels_leave_out_what_all_keys_share(keys: list[str], pattern: str, labels: list[str]) -> None:
    assert short_labels(keys) == (pattern, labels)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), min_size=2, unique=True))
def test_labels_put_into_the_pattern_give_the_keys(keys: list[str]) -> None:
    pattern, labels = short_labels(keys)
    assert [pattern.replace("*", label) for label in labels] == keys
    assert all(labels)


@given(st.data(), st.integers(0, 40), st.integers(1, 50))
def test_shares_are_the_means_of_slices_of_the_mask(data: st.DataObject, units: int, size: int) -> None:
    mask = data.draw(st.lists(st.booleans(), min_size=units, max_size=units))
    shares = kept_shares(block(units, tuple(index for index, kept in enumerate(mask) if kept)), size)
    slices = [mask[start : start + size] for start in range(0, units, size)]
    assert shares == [sum(part) / len(part) for part in slices]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5), st.integers(1, 100))
def test_the_bin_size_is_the_smallest_that_fits(widths: list[int], bins: int) -> None:
    size = units_per_bin([block(width, ()) for width in widths], bins)
    assert all(len(kept_shares(block(width, ()), size)) <= bins for width in widths)
    assert size == 1 or any(len(kept_shares(block(width, ()), size - 1)) > bins for width in widths)


def test_no_blocks_need_no_bins() -> None:
    assert units_per_bin([], 8) == 1
