from __future__ import annotations

import math

import pytest
import torch

from hf_prune.strategies.single_shot.distribution_loss import (
    authors_divergence,
    draw_dimensions,
    paper_divergence,
    relative_distances,
)

TEXTS, HIDDEN = 6, 5


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dense, noise = torch.randn(2, TEXTS, HIDDEN, generator=generator, dtype=torch.float64)
    return dense, dense + 0.7 * noise


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def test_the_paper_s_loss_is_its_equations(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = [each.tolist() for each in vectors]
    total = 0.0
    for text in range(TEXTS):
        powers = [[math.exp(cosine(side[text], other)) for other in side] for side in rows]
        dense, pruned = ([power / sum(side) for power in side] for side in powers)
        total -= sum(p * math.log(q / p) for p, q in zip(dense, pruned, strict=True))
    assert total > 0
    assert paper_divergence(*vectors).item() == pytest.approx(total, rel=1e-9)


def test_the_authors_loss_is_their_arithmetic(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    chosen = torch.tensor([True, False, True, True, False])
    entries = []
    for side in vectors:
        kept = [[row[index] for index in (0, 2, 3)] for row in side.tolist()]
        means = [sum(column) / TEXTS for column in zip(*kept, strict=True)]
        centred = [[value - mean for value, mean in zip(row, means, strict=True)] for row in kept]
        entries.append([10 * cosine(one, other) for one in centred for other in centred])
    total = 0.0
    for start in range(0, TEXTS * TEXTS, 2):
        dense, pruned = (
            [math.exp(value) / sum(map(math.exp, side[start : start + 2])) for value in side[start : start + 2]]
            for side in entries
        )
        total += sum(p * math.log(p / q) for p, q in zip(dense, pruned, strict=True))
    assert authors_divergence(*vectors, chosen).item() == pytest.approx(total / TEXTS**2, rel=1e-9)


@pytest.mark.parametrize("divergence", [paper_divergence, authors_divergence])
def test_equal_distances_cost_nothing(divergence: object, vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert divergence(vectors[0], 3 * vectors[0]).item() == pytest.approx(0, abs=1e-12)  # type: ignore[operator]


def test_near_texts_have_most_of_the_mass() -> None:
    rows = relative_distances(torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]])).exp()
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(3))
    assert rows[0, 0] > rows[0, 1] > rows[0, 2]


def test_a_fifth_of_the_dimensions_is_drawn_and_never_none() -> None:
    generator = torch.Generator().manual_seed(0)
    assert draw_dimensions(20_000, generator).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert all(draw_dimensions(2, generator).any() for _ in range(50))
