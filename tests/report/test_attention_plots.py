from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_prune.errors import PruningError
from hf_prune.report import plot_attention_maps


def filled(length: int, size: int = 16) -> torch.Tensor:
    attention = torch.zeros(size, size)
    attention[:length, :length] = torch.full((length, length), 1 / length)
    return attention


def test_maps_are_drawn_without_their_filling_below_their_scores(tmp_path: Path) -> None:
    maps = torch.stack([filled(length) for length in (4, 8, 3)])
    path = tmp_path / "maps.png"
    figure = plot_attention_maps(maps, torch.tensor([0.9891, 0.5, 0.0031]), ["a", "b", "c"], path, columns=2)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["0.989", "0.500", "0.003"]
    assert [axes.get_xlabel() for axes in panels] == ["a", "b", "c"]
    for axes, length in zip(panels, (4, 8, 3), strict=True):
        (image,) = axes.images
        np.testing.assert_allclose(np.asarray(image.get_array()), np.full((length, length), 1 / length))
        assert image.get_clim() == pytest.approx((0, 1 / 3))  # one scale for all
    assert path.stat().st_size > 1000


def test_a_map_of_zeros_is_drawn_whole() -> None:
    (image,) = plot_attention_maps([torch.zeros(3, 5)], [0.1]).axes[0].images
    assert np.asarray(image.get_array()).shape == (3, 5)


@pytest.mark.parametrize(
    ("maps", "scores", "names", "message"),
    [
        ([], [], None, "0 attention maps"),
        ([torch.ones(2, 2)], [0.1, 0.2], None, "1 attention maps, 2 scores"),
        ([torch.ones(2, 2)], [0.1], ["a", "b"], "2 names"),
        ([torch.ones(2)], [0.1], None, r"got the shape \(2,\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(maps: list, scores: list, names: list | None, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        plot_attention_maps(maps, scores, names)
