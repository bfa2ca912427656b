from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from scipy import stats

from hf_prune.errors import PruningError
from hf_prune.report import (
    StudyRow,
    accuracy_by_loss,
    magnitude_shift,
    plot_feature_similarity,
    plot_head_range,
    plot_losses,
    plot_magnitude_shift,
)
from hf_prune.report.magnitude_order import BINS

LOSSES = (1.8, 2.0, 2.7, 5.8)
DELETED = [
    StudyRow("SST-2", sparsity, loss, accuracy, "deleted")
    for sparsity, loss, accuracy in zip((0.0, 0.5, 0.7, 0.9), LOSSES, (92.1, 91.2, 90.3, 83.0), strict=True)
]
AFTER = [StudyRow("SST-2", 0.9, None, 81.5, "after"), StudyRow("SST-2", 0.5, None, 90.8, "after")]


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """Labelled lines as their points."""
    return {
        str(line.get_label()): [tuple(point) for point in line.get_xydata().tolist()]  # type: ignore[union-attr,misc]
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def test_the_fit_is_scipys() -> None:
    fit = accuracy_by_loss(DELETED)
    expected = stats.linregress(LOSSES, [row.accuracy for row in DELETED])
    assert fit is not None
    assert fit.slope == pytest.approx(expected.slope)
    assert fit.intercept == pytest.approx(expected.intercept)
    assert fit.r_squared == pytest.approx(expected.rvalue**2)


def test_two_losses_make_no_fit() -> None:
    assert accuracy_by_loss([*DELETED[:2], DELETED[1], *AFTER]) is None


def test_accuracy_over_sparsity_and_over_loss() -> None:
    by_sparsity, by_loss = plot_losses([*DELETED[::-1], *AFTER]).axes
    assert lines(by_sparsity) == {
        "SST-2, deleted": [pytest.approx((100 * row.sparsity, row.accuracy)) for row in DELETED],
        "SST-2, after": [pytest.approx((50, 90.8)), pytest.approx((90, 81.5))],
    }
    assert lines(by_loss) == {"SST-2, deleted": [(row.loss, row.accuracy) for row in DELETED]}
    assert (by_sparsity.get_xlabel(), by_loss.get_xlabel()) == ("weights removed, in %", "pre-training loss")


def test_the_dashed_line_is_the_fit() -> None:
    axes = plot_losses(DELETED).axes[1]
    (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    fit = accuracy_by_loss(DELETED)
    assert fit is not None
    np.testing.assert_allclose(dashed.get_xdata(), [min(LOSSES), max(LOSSES)])
    np.testing.assert_allclose(
        dashed.get_ydata(), [fit.slope * loss + fit.intercept for loss in (min(LOSSES), max(LOSSES))]
    )


def test_kinds_have_colours_and_labels_have_markers() -> None:
    rows = [StudyRow(label, 0.5, 2.0, 80, kind) for kind in ("pruned", "random") for label in ("SST-2", "CoLA")]
    looks = {str(line.get_label()): (line.get_color(), line.get_marker()) for line in plot_losses(rows).axes[0].lines}
    assert looks["SST-2, pruned"][0] == looks["CoLA, pruned"][0] != looks["SST-2, random"][0]
    assert looks["SST-2, pruned"][1] == looks["SST-2, random"][1] != looks["CoLA, pruned"][1]


def test_without_losses_there_is_one_panel() -> None:
    (axes,) = plot_losses(AFTER).axes
    assert axes.get_xlabel() == "weights removed, in %"


def test_similarities_are_lines_over_layers_and_stacks_are_panels() -> None:
    values = torch.tensor([1.0, 0.75, 0.5], dtype=torch.float64)
    figure = plot_feature_similarity(
        {
            "50 %": {"encoder_hidden_states": values, "decoder_hidden_states": values[:2]},
            "90 %": {"encoder_hidden_states": values / 2, "decoder_hidden_states": values[:2] / 2},
        }
    )
    encoder, decoder = figure.axes
    assert lines(encoder) == {"50 %": [(0, 1), (1, 0.75), (2, 0.5)], "90 %": [(0, 0.5), (1, 0.375), (2, 0.25)]}
    assert lines(decoder) == {"50 %": [(0, 1), (1, 0.75)], "90 %": [(0, 0.5), (1, 0.375)]}
    assert encoder.get_title() == "encoder hidden states"


def test_the_range_of_heads_in_the_order_of_sparsity() -> None:
    levels = {
        0.6: {"a": torch.tensor([0.5, 0.75]), "b": torch.tensor([0.625])},
        0.25: {"a": torch.tensor([0.25, 0.25]), "b": torch.tensor([0.25])},
    }
    (axes,) = plot_head_range(levels).axes
    assert lines(axes) == {
        "max": [(25, 25), (60, 75)],
        "mean": [(25, 25), (60, 62.5)],
        "min": [(25, 25), (60, 50)],
    }


def test_moves_are_drawn_in_the_middle_of_their_bins() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(400, generator=generator)
    shift = magnitude_shift({"w": before}, {"w": before + 0.1 * torch.randn(400, generator=generator)})
    (axes,) = plot_magnitude_shift({"one epoch": shift}).axes
    points = lines(axes)["one epoch"]
    assert [x for x, _ in points] == pytest.approx([100 * (index + 0.5) / BINS for index in range(BINS)])
    assert [y for _, y in points] == pytest.approx([100 * value for value in shift.total.by_position])


@pytest.mark.parametrize("plot", [plot_losses, plot_feature_similarity, plot_head_range, plot_magnitude_shift])
def test_nothing_to_draw_is_an_error(plot: Callable[[object], object]) -> None:
    with pytest.raises(PruningError, match=r"There are no (rows|similarities|heads|shifts) to draw"):
        plot({})


@pytest.mark.parametrize(("name", "start"), [("study.png", b"\x89PNG"), ("study.svg", b"<?xml")])
def test_the_picture_is_written_without_pyplot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: bytes
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    plot_losses(DELETED, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
