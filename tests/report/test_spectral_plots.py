from __future__ import annotations

from pathlib import Path

import pytest

from hf_prune.errors import PruningError
from hf_prune.report import plot_singular_values

NAME = "bert.encoder.layer.{}.{}.weight"
KINDS = ("attention.self.query", "intermediate.dense", "output.dense", "attention.output.dense")


def history(steps: tuple[int, ...] = (0, 10, 20)) -> dict[int, dict[str, float]]:
    return {
        step: {
            NAME.format(layer, kind): 1.0 + 10 * number + layer + step / 100
            for number, kind in enumerate(KINDS)
            for layer in range(2)
        }
        for step in steps
    }


def test_a_panel_per_kind_and_a_line_per_layer(tmp_path: Path) -> None:
    path = tmp_path / "values.png"
    figure = plot_singular_values(history((20, 0, 10)), path)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == list(KINDS)
    assert len(figure.axes) == 6
    for number, axes in enumerate(panels):
        for layer, line in enumerate(axes.lines):
            assert line.get_label() == f"layer {layer}"
            assert list(line.get_xdata()) == [0, 10, 20]
            start = 1.0 + 10 * number + layer
            assert list(line.get_ydata()) == pytest.approx([start, start + 0.1, start + 0.2])
    assert panels[0].get_legend() is not None
    assert path.stat().st_size > 5000


def test_matrices_may_come_late() -> None:
    late = "bert.pooler.dense.weight"
    values = history()
    values[20][late] = 7.0
    panel = {axes.get_title(): axes for axes in plot_singular_values(values).axes}["bert.pooler.dense"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines] == [([20], [7.0])]


def test_two_stacks_have_panels_of_their_own() -> None:
    values = {0: {f"{stack}.block.{layer}.wo.weight": 1.0 for stack in ("encoder", "decoder") for layer in range(2)}}
    figure = plot_singular_values(values)
    assert [axes.get_title() for axes in figure.axes] == ["encoder.block, wo", "decoder.block, wo"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]


@pytest.mark.parametrize("empty", [{}, {0: {}}])
def test_nothing_to_draw_is_refused(empty: dict[int, dict[str, float]]) -> None:
    with pytest.raises(PruningError, match="no singular values to draw"):
        plot_singular_values(empty)
