"""Heads under a budget of heads: counts, and the best choice against every other one."""

from __future__ import annotations

import itertools

import pytest
import torch

from hf_prune import HeadImportancePruningConfig, PruningError, describe_model
from hf_prune.budget import head_count, keep_heads, select_heads
from tests.small_models import case


@pytest.mark.parametrize(
    ("total", "fraction", "count"),
    [
        (12, 0.5, 6),
        (12, 0.25, 3),
        (12, 0.3, 3),
        (10, 0.3, 3),
        (100, 0.29, 29),
        (10, 0.7, 7),
        (3, 1.0, 3),
        (12, 0.05, 0),
    ],
)
def test_counts_are_rounded_down(total: int, fraction: float, count: int) -> None:
    assert head_count(total, fraction) == count


@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.6, 1.0])
@pytest.mark.parametrize("minimum", [0, 1, 2])
def test_the_best_of_all_choices(fraction: float, minimum: int) -> None:
    generator = torch.Generator().manual_seed(int(10 * fraction) + minimum)
    scores = [torch.randn(size, generator=generator) for size in (4, 3, 2)]
    masks = keep_heads(scores, fraction, minimum=minimum)
    count = max(head_count(9, fraction), 3 * minimum)
    flat, owner = torch.cat(scores), [0] * 4 + [1] * 3 + [2] * 2
    allowed = [
        choice
        for choice in itertools.combinations(range(9), count)
        if all(sum(owner[head] == block for head in choice) >= minimum for block in range(3))
    ]
    best = max(allowed, key=lambda choice: float(flat[list(choice)].sum()))
    assert torch.cat(masks).nonzero().flatten().tolist() == list(best)


def test_every_layer_keeps_its_own_fraction() -> None:
    scores = [torch.tensor([0.1, 0.9, 0.5, 0.4]), torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0])]
    masks = keep_heads(scores, 0.5, per_layer=True)
    assert [mask.tolist() for mask in masks] == [[False, True, True, False], [True, False, False], [True]]
    emptied = keep_heads(scores, 0.3, per_layer=True, minimum=0)
    assert [int(mask.sum()) for mask in emptied] == [1, 0, 0]


def test_of_equal_heads_the_first_stay() -> None:
    masks = keep_heads([torch.zeros(3), torch.zeros(3)], 0.5)
    assert [mask.tolist() for mask in masks] == [[True, True, False], [True, False, False]]


def test_scores_that_are_not_numbers() -> None:
    with pytest.raises(PruningError, match="not numbers"):
        keep_heads([torch.tensor([1.0, torch.nan])], 0.5)


def selected(task: str, **settings: object) -> tuple[dict[str, int], list[str]]:
    """How many units each attention block keeps, for scores that rise with the layer."""
    anatomy = describe_model(case("bert", task).model())
    scores = {block.key: torch.full((block.units,), float(place)) for place, block in enumerate(anatomy.attentions)}
    selection = select_heads(anatomy, scores, HeadImportancePruningConfig(**settings), per_layer=False)
    assert all(selection.masks[block.key].all() for block in anatomy.feed_forwards)
    return {block.key: int(selection.masks[block.key].sum()) for block in anatomy.attentions}, selection.notes


def test_a_layer_keeps_a_head_unless_it_may_lose_it() -> None:
    assert selected("classification", heads=0.5) == (named(1, 1, 4), [])
    assert selected("classification", heads=0.5, allow_empty_layers=True) == (named(0, 2, 4), [])
    assert selected("causal", heads=0.5, allow_empty_layers=True) == (named(1, 1, 4), [])  # the cache needs the first


def test_less_than_what_has_to_stay_is_noted() -> None:
    counts, notes = selected("classification", heads=0.1)
    assert counts == named(1, 1, 1)
    assert notes == ["heads=0.1 is less than what has to stay: 3 of 12 heads."]


def test_the_fraction_is_one_of_the_heads_that_may_go() -> None:
    assert selected("classification", heads=0.5, exclude_modules=["layer.0.attention"])[0] == named(4, 1, 3)


def test_no_heads_to_choose_from() -> None:
    with pytest.raises(PruningError, match="heads= has no heads to choose from"):
        selected("classification", heads=0.5, exclude_modules=["attention"])


def named(*counts: int) -> dict[str, int]:
    return {f"encoder.layer.{layer}.attention": count for layer, count in enumerate(counts)}
