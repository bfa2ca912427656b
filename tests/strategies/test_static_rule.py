from __future__ import annotations

import pytest
import torch

from hf_prune.strategies.static_mask.rule import deviation_of, masks_by_kind, with_magnitude


def scores_of_mean(mean: float, count: int = 100) -> torch.Tensor:
    """Scores whose sigmoids have a given mean, all different."""
    spread = torch.linspace(-1e-3, 1e-3, count)
    return torch.logit(mean + spread[torch.randperm(count, generator=torch.Generator().manual_seed(0))])


def counts(masks: list[torch.Tensor]) -> list[int]:
    return [int(mask.count_nonzero()) for mask in masks]


class TestMasksByKind:
    def test_levels_by_hand(self) -> None:
        """Of 200 weights 40 % stay: c = 0.8 / (0.2 + 0.6) = 1."""
        masks = masks_by_kind([scores_of_mean(0.2), scores_of_mean(0.6)], ["key", "key"], 0.6)
        assert counts(masks) == [20, 60]

    def test_what_a_full_matrix_cannot_take_goes_to_the_others(self) -> None:
        masks = masks_by_kind([scores_of_mean(0.1), scores_of_mean(0.9)], ["key", "key"], 0.2)
        assert counts(masks) == [60, 100]

    def test_kinds_do_not_share(self) -> None:
        scores = [scores_of_mean(mean) for mean in (0.2, 0.9, 0.6, 0.3)]
        masks = masks_by_kind(scores, ["key", "value", "key", "value"], 0.6)
        assert counts(masks) == [20, 60, 60, 20]

    def test_temperature_makes_layers_alike(self) -> None:
        scores = [scores_of_mean(0.2), scores_of_mean(0.6)]
        low, high = counts(masks_by_kind(scores, ["key", "key"], 0.6, temperature=100.0))
        assert (low, high) == (40, 40)

    @pytest.mark.parametrize("sparsity", [0.0, 0.137, 0.5, 0.97])
    def test_exact_in_total_and_the_highest_of_each(self, sparsity: float) -> None:
        generator = torch.Generator().manual_seed(1)
        sizes = ((7, 11), (13, 5), (40, 3), (9, 9))
        scores = [torch.randn(size, generator=generator) for size in sizes]
        kinds = ["key", "key", "value", "value"]
        masks = masks_by_kind(scores, kinds, sparsity)
        for kind in ("key", "value"):
            total = sum(score.numel() for score, name in zip(scores, kinds, strict=True) if name == kind)
            kept = sum(int(mask.sum()) for mask, name in zip(masks, kinds, strict=True) if name == kind)
            assert kept == total - round(total * sparsity)
        for score, mask in zip(scores, masks, strict=True):
            assert not (~mask).any() or not mask.any() or score[mask].min() > score[~mask].max()

    def test_levels_go_by_scores_and_weights_by_ranks(self) -> None:
        scores = [scores_of_mean(0.2), scores_of_mean(0.6)]
        ranks = [torch.randperm(100, generator=torch.Generator().manual_seed(number)).float() for number in (2, 3)]
        masks = masks_by_kind(scores, ["key", "key"], 0.6, ranks=lambda index, score: ranks[index])
        for mask, rank, kept in zip(masks, ranks, (20, 60), strict=True):
            assert mask.equal(rank >= 100 - kept)


def test_a_prior_ranks_by_standard_deviations_of_the_weights() -> None:
    weight = torch.tensor([[3.0, -1.0], [-2.0, 2.0]], dtype=torch.bfloat16)
    deviation = (((weight.float() - 0.5) ** 2).sum() / 3) ** 0.5
    scores = torch.tensor([[0.0, 1.0], [-1.0, 0.5]])
    expected = scores + 2.0 * torch.tensor([[3.0, 1.0], [2.0, 2.0]]) / deviation
    torch.testing.assert_close(with_magnitude(scores, weight, 2.0, deviation_of(weight)), expected)


def test_weights_that_are_all_alike_are_ranked_by_score() -> None:
    scores = torch.tensor([0.3, -0.1, 0.2])
    weight = torch.zeros(3)
    ranks = with_magnitude(scores, weight, 1.0, deviation_of(weight))
    assert ranks.argsort().equal(scores.argsort())
