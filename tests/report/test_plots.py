from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from hf_prune.errors import PruningError
from hf_prune.report import BlockReport, PruningReport
from hf_prune.report.plots import FILTER_BINS, plot_kept_units


def mesh(axes: Axes) -> np.ndarray:
    (found,) = [item for item in axes.collections if isinstance(item, QuadMesh)]
    values = found.get_array()
    assert values is not None
    return np.ma.filled(values, np.nan)


def texts(axes: Axes) -> list[str]:
    return [item.get_text() for item in axes.texts]


def test_two_panels_show_every_unit_of_a_small_model(report: PruningReport) -> None:
    figure = plot_kept_units(report)
    heads, filters = figure.axes[:2]
    gone = np.nan
    np.testing.assert_array_equal(mesh(heads), [[1, 1, 0, 1], [0, 0, gone, gone]])
    np.testing.assert_array_equal(
        mesh(filters), [[1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1, 1, gone, gone, gone, gone]]
    )
    assert texts(heads) == ["3 / 4", "0 / 2"]
    assert texts(filters) == ["6 / 12", "8 / 8"]
    assert heads.get_title() == "Attention heads: 3 of 6 kept"
    assert filters.get_title() == "FFN filters: 14 of 20 kept"
    assert [label.get_text() for label in heads.get_yticklabels()] == ["0", "1"]
    assert heads.get_ylabel() == "encoder.layer.*.attention"
    assert "55.9 %" in figure.get_suptitle()


def test_the_first_block_is_at_the_top(report: PruningReport) -> None:
    bottom, top = plot_kept_units(report).axes[0].get_ylim()
    assert (bottom, top) == (2, 0)


def test_wide_blocks_are_binned_with_one_size(report: PruningReport) -> None:
    wide = BlockReport("a.0", "feed_forward", 1536, 768, tuple(range(768)), 1, 1)
    narrow = BlockReport("a.1", "feed_forward", 100, 50, tuple(range(0, 100, 2)), 1, 1)
    (axes, _scale) = plot_kept_units(replace(report, blocks=(wide, narrow))).axes
    values = mesh(axes)
    assert values.shape == (2, FILTER_BINS)
    np.testing.assert_array_equal(values[0], [1.0] * 24 + [0.0] * 24)
    np.testing.assert_array_equal(values[1, :4], [0.5] * 4)  # three bins of 32 and the four filters left over
    assert np.isnan(values[1, 4:]).all()
    assert axes.get_xlabel() == "filter, in bins of 32"


def test_a_kind_that_is_not_there_has_no_panel(report: PruningReport) -> None:
    only_heads = replace(report, blocks=report.blocks[::2])
    (axes,) = plot_kept_units(only_heads).axes
    assert axes.get_title() == "Attention heads: 3 of 6 kept"


def test_blocks_with_nothing_left_can_be_drawn(report: PruningReport, tmp_path: Path) -> None:
    gone = tuple(replace(block, dense_units=0, kept_units=0, kept=()) for block in report.blocks)
    figure = plot_kept_units(replace(report, blocks=gone), tmp_path / "gone.png")
    assert np.isnan(mesh(figure.axes[0])).all()
    assert texts(figure.axes[0]) == ["0 / 0", "0 / 0"]


@pytest.mark.parametrize(("name", "start"), [("kept.png", b"\x89PNG"), ("kept.svg", b"<?xml"), ("kept.pdf", b"%PDF")])
def test_the_picture_is_written(report: PruningReport, tmp_path: Path, name: str, start: bytes) -> None:
    report.plot(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_no_text_lies_outside_the_picture_or_on_another_panel(report: PruningReport) -> None:
    figure = plot_kept_units(report)
    figure.canvas.draw()
    heads, filters = (axes.get_tightbbox() for axes in figure.axes[:2])
    assert heads is not None
    assert filters is not None
    assert 0 <= heads.x0 < heads.x1 <= filters.x0
    assert filters.x1 <= figure.bbox.x1


def test_pyplot_stays_out_of_it(report: PruningReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert len(plot_kept_units(report).axes) == 3


def test_without_matplotlib_the_extra_is_named(report: PruningReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PruningError, match=r"hf-prune\[report\]"):
        report.plot()


def test_nothing_to_draw_is_an_error(report: PruningReport) -> None:
    with pytest.raises(PruningError, match=r"'someone/tiny-sst2' has no blocks"):
        plot_kept_units(replace(report, blocks=()))
