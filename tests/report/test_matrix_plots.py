from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from hf_prune.errors import PruningError
from hf_prune.report import mask_overlap, plot_head_sparsity, plot_mask_overlap, plot_matrix_sparsity


def mask(removed: int, size: int = 100) -> torch.Tensor:
    return torch.arange(size) >= removed


MASKS = {
    "bert.embeddings.word_embeddings.weight": mask(25),
    "bert.encoder.layer.0.attention.self.query.weight": mask(40),
    "bert.encoder.layer.0.output.dense.weight": mask(10),
    "bert.encoder.layer.1.attention.self.query.weight": mask(60),
    "bert.pooler.dense.weight": mask(50),
}


def mesh(axes: Axes) -> np.ndarray:
    (found,) = [item for item in axes.collections if isinstance(item, QuadMesh)]
    values = found.get_array()
    assert values is not None
    return np.ma.filled(values, np.nan)


def labels(axes: Axes) -> tuple[list[str], list[str]]:
    ticks = axes.get_yticklabels(), axes.get_xticklabels()
    return tuple([label.get_text() for label in side] for side in ticks)  # type: ignore[return-value]


def test_layers_are_rows_and_what_lies_outside_is_apart() -> None:
    inside, outside = plot_matrix_sparsity(MASKS).axes
    np.testing.assert_allclose(mesh(inside), [[0.4, 0.1], [0.6, np.nan]])
    assert labels(inside) == (["0", "1"], ["attention.self.query", "output.dense"])
    assert inside.get_ylabel() == "bert.encoder.layer.*"
    assert inside.get_ylim() == (2, 0)
    assert sorted(text.get_text() for text in inside.texts) == ["10.0", "40.0", "60.0"]
    np.testing.assert_allclose(mesh(outside), [[0.25], [0.5]])
    assert labels(outside)[0] == ["bert.embeddings.word_embeddings", "bert.pooler.dense"]


def test_the_title_has_the_total() -> None:
    assert "37.0 % in all" in plot_matrix_sparsity(MASKS).get_suptitle()


def test_experts_of_a_layer_are_one_cell() -> None:
    masks = {f"layers.0.mlp.experts.{index}.w1.weight": mask(removed) for index, removed in enumerate((10, 40))}
    (axes,) = plot_matrix_sparsity(masks).axes
    np.testing.assert_allclose(mesh(axes), [[0.25]])
    assert labels(axes)[1] == ["mlp.experts.*.w1"]


def test_overlap_is_drawn_as_the_share_of_either() -> None:
    shifted = {name: value.roll(20) for name, value in MASKS.items()}
    overlap = mask_overlap(MASKS, shifted)
    inside, outside = plot_mask_overlap(overlap).axes
    np.testing.assert_allclose(mesh(inside), [[20 / 60, 0], [40 / 80, np.nan]])
    np.testing.assert_allclose(mesh(outside), [[5 / 45], [30 / 70]])
    assert f"{100 * overlap.total.chance_jaccard:.1f} % by chance" in plot_mask_overlap(overlap).get_suptitle()


def test_a_matrix_that_loses_nothing_is_an_empty_cell() -> None:
    whole = {"layer.0.w.weight": mask(0), "layer.1.w.weight": mask(1)}
    (axes,) = plot_mask_overlap(mask_overlap(whole, whole)).axes
    np.testing.assert_array_equal(mesh(axes), [[np.nan], [1]])


def test_heads_of_blocks_of_different_size() -> None:
    sparsity = {
        "encoder.layer.0.attention": torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64),
        "encoder.layer.1.attention": torch.tensor([0.125], dtype=torch.float64),
    }
    figure = plot_head_sparsity(sparsity)
    (axes,) = figure.axes
    np.testing.assert_array_equal(mesh(axes), [[0.25, 0.5, 0.75], [0.125, np.nan, np.nan]])
    assert labels(axes) == (["0", "1"], ["0", "1", "2"])
    assert figure.get_suptitle().endswith("12.5 % to 75.0 %")


def test_no_heads_are_an_error() -> None:
    with pytest.raises(PruningError, match="no heads to draw"):
        plot_head_sparsity({"encoder.layer.0.attention": torch.zeros(0)})


def test_no_text_lies_outside_the_picture_or_on_another_panel() -> None:
    figure = plot_matrix_sparsity(MASKS)
    figure.canvas.draw()
    left, right = (axes.get_tightbbox() for axes in figure.axes)
    assert left is not None
    assert right is not None
    assert 0 <= left.x0 < left.x1 <= right.x0
    assert right.x1 <= figure.bbox.x1


def test_the_picture_is_written_without_pyplot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    plot_matrix_sparsity(MASKS, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PruningError, match=r"hf-prune\[report\]"):
        plot_matrix_sparsity(MASKS)
