from __future__ import annotations

import pytest
import torch

from hf_prune import PruningError, describe_model
from hf_prune.scores import (
    GradientRows,
    blend_scores,
    fisher_scores,
    gradient_scores,
    magnitude_scores,
    unit_energies,
)
from tests.small_models import case


def test_fisher_is_the_sum_of_squares() -> None:
    gradients = [torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[2.0], [0.0]])]
    assert [score.tolist() for score in fisher_scores(gradients)] == [[10.0, 4.25], [4.0]]
    assert [score.tolist() for score in gradient_scores(gradients)] == [[4.0, 2.5], [2.0]]
    assert fisher_scores(gradients)[0].dtype == torch.float64


@pytest.mark.parametrize("item", [case("bert", "classification"), case("distilbert", "classification")], ids=str)
def test_magnitude_sums_the_weights_of_a_unit(item: object) -> None:
    model = item.model()
    blocks = describe_model(model).blocks
    scores = magnitude_scores(model, blocks)
    layer = model.get_submodule(blocks[0].layer)
    attention = [
        layer.get_submodule(projection.path).weight.detach().double().abs() for projection in blocks[0].projections
    ]
    # Head 2 of size 8: rows 16 … 23 of query, key and value, and the same columns of the output projection.
    head = sum(weight[16:24].sum() for weight in attention[:3]) + attention[3][:, 16:24].sum()
    assert scores[0][2].item() == pytest.approx(head.item(), rel=1e-12)
    inner, outer = (layer.get_submodule(item.path).weight.detach().double().abs() for item in blocks[1].projections)
    assert scores[1][5].item() == pytest.approx((inner[5].sum() + outer[:, 5].sum()).item(), rel=1e-12)
    assert [len(score) for score in scores] == [block.units for block in blocks]


class TestGradientRows:
    @pytest.mark.parametrize(("units", "batches", "size"), [(3, 40, 32), (300, 30, 32), (5, 1, 2), (1, 600, 1)])
    def test_gram_matrix_and_sums_survive_compaction(self, units: int, batches: int, size: int) -> None:
        generator = torch.Generator().manual_seed(units)
        rows, everything = GradientRows(units), []
        for _ in range(batches):
            part = torch.randn(size, units, generator=generator)
            everything.append(part.double())
            rows.add(part)
            assert len(rows.matrix()) <= 2 * max(units, 256) + size
        stacked, matrix = torch.cat(everything), rows.matrix()
        expected = stacked.T @ stacked
        found = matrix.double().T @ matrix.double()
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert torch.allclose(fisher_scores([matrix])[0], stacked.square().sum(0), rtol=1e-5)
        assert torch.allclose(rows.absolute_sum, gradient_scores([stacked])[0], rtol=1e-6)
        assert torch.allclose(rows.square_sum, stacked.square().sum(0), rtol=1e-6)
        assert rows.examples == batches * size
        assert matrix.dtype == torch.float32

    def test_compaction_takes_place(self) -> None:
        rows = GradientRows(4)
        for _ in range(40):
            rows.add(torch.randn(32, 4))
        assert rows.examples == 1280
        assert len(rows.matrix()) < 600

    def test_nothing_added(self) -> None:
        rows = GradientRows(4)
        assert rows.matrix().shape == (0, 4)
        assert rows.square_sum.tolist() == rows.absolute_sum.tolist() == [0.0] * 4

    def test_sums_need_no_rows(self) -> None:
        rows = GradientRows(2, keep_rows=False)
        rows.add(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        assert rows.square_sum.tolist() == [10.0, 4.25]
        assert rows.absolute_sum.tolist() == [4.0, 2.5]
        with pytest.raises(PruningError, match="keep_rows=True"):
            rows.matrix()


def test_blended_scores_weigh_both_parts_alike_whatever_their_scale() -> None:
    one = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([4.0])}
    other = {"a": torch.tensor([500.0, 0.0]), "b": torch.tensor([1500.0])}
    found = blend_scores(one, other, 0.25)
    assert torch.allclose(found["a"], torch.tensor([0.75 / 8 + 0.25 / 4, 0.75 * 3 / 8]))
    assert torch.allclose(found["b"], torch.tensor([0.75 / 2 + 0.25 * 3 / 4]))
    nothing = {"a": torch.zeros(2), "b": torch.zeros(1)}
    assert torch.allclose(blend_scores(one, nothing, 0.5)["a"], torch.tensor([0.5 / 8, 1.5 / 8]))


def test_energies_of_units_with_columns_anywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(9, 6, generator=generator).double(), torch.randn(4, 6, generator=generator).double()
    columns = torch.tensor([1, 0, 2, 1, 0, 2])
    found = unit_energies(inputs.T @ inputs / 9, weight, columns)
    for unit in range(3):
        own = columns == unit
        expected = sum(float((weight[:, own] @ token[own]).square().sum()) for token in inputs) / 9
        assert float(found[unit]) == pytest.approx(expected)
