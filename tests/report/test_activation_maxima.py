"""The distribution of max|F|: measured per example, and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from matplotlib.patches import StepPatch

from hf_prune import PruningError, describe_model
from hf_prune.report import MappingMaxima, activation_maxima, plot_activation_maxima
from tests.small_models import Batch, case

BERT = case("bert", "classification")


def test_a_value_per_example_in_evaluation_mode(rows: Dataset, batches: list[Batch]) -> None:
    model = BERT.model().train()
    found = activation_maxima(model, batches)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [item.key for item in found] == [block.key for block in describe_model(model).blocks]
    assert {tuple(item.values.shape) for item in found} == {(24, 4), (24, 1)}
    by_row = activation_maxima(model, rows, batch_size=5)  # in an order of their own
    for one, other in zip(found, by_row, strict=True):
        torch.testing.assert_close(one.values.sort(0).values, other.values.sort(0).values)
    # The feed-forward outputs of the second example alone, without its padding.
    module = model.bert.encoder.layer[0].output.dense
    outputs: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    length = int(batches[0]["attention_mask"][1].sum())
    model.eval()(input_ids=batches[0]["input_ids"][1:2, :length])
    handle.remove()
    torch.testing.assert_close(found[1].values[1], outputs[0].abs().max()[None], rtol=1e-4, atol=1e-4)


def test_a_value_per_batch_of_some_kinds(batches: list[Batch]) -> None:
    model = BERT.model()
    by_batch = activation_maxima(model, batches, kinds=["feed_forward"], reduction="batch")
    by_example = activation_maxima(model, batches, kinds=["feed_forward"])
    assert [item.kind for item in by_batch] == ["feed_forward"] * 3
    for one, other in zip(by_batch, by_example, strict=True):
        torch.testing.assert_close(one.values[:, 0], other.values.reshape(6, 4).amax(1))


def heads(key: str, values: list[list[float]]) -> MappingMaxima:
    return MappingMaxima(key, "heads", torch.tensor(values))


def test_lines_are_histograms_in_common_bins() -> None:
    ffn = MappingMaxima("layer.0.ffn", "feed_forward", torch.tensor([[4.0], [8.0]]))
    without = [heads("layer.0", [[0.0, 1.0], [4.0, 1.0]]), heads("layer.1", [[3.0, 2.0], [3.0, 2.0]]), ffn]
    figure = plot_activation_maxima({"w/o": without, "w/": [heads("layer.0", [[0.1], [0.2], [0.2], [0.2]]), ffn]})
    attention, feed_forward, attention_with, _ = figure.axes
    assert attention.get_title() == "w/o: attention, each head"
    assert feed_forward.get_title() == "w/o: feed-forward"
    assert attention_with.get_title() == "w/: attention, each head"
    lines = [patch for patch in attention.patches if isinstance(patch, StepPatch)]
    other = [patch for patch in attention_with.patches if isinstance(patch, StepPatch)]
    assert (len(lines), len(other)) == (4, 1)
    edges = lines[0].get_data().edges
    assert (edges[0], edges[-1]) == (0.0, 4.0)
    assert all(np.array_equal(line.get_data().edges, edges) for line in [*lines, *other])
    assert lines[0].get_data().values[[0, -1]].tolist() == [50.0, 50.0]
    assert [line.get_data().values.max() for line in lines[1:]] == [100.0, 100.0, 100.0]
    assert other[0].get_data().values[[1, 2]].tolist() == [25.0, 75.0]
    assert lines[0].get_edgecolor() == lines[1].get_edgecolor() != lines[2].get_edgecolor()
    assert attention.get_legend_handles_labels()[1] == ["layer.0", "layer.1"]


def test_the_picture_is_written(tmp_path: Path) -> None:
    plot_activation_maxima({"dense": [heads("layer.0", [[1.0], [1.0]])]}, tmp_path / "maxima.png")
    assert (tmp_path / "maxima.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("models", [{}, {"dense": []}, {"dense": [MappingMaxima("a", "heads", torch.empty(0, 4))]}])
def test_nothing_to_draw(models: dict[str, list[MappingMaxima]]) -> None:
    with pytest.raises(PruningError, match="There are no maxima to draw"):
        plot_activation_maxima(models)
