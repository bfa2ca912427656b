"""Which gates an iteration removes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.strategies.snip.closing import Gates, to_close

NAN = math.nan


def group(
    usage: Sequence[float],
    unused: Sequence[bool] | None = None,
    means: Sequence[float] | None = None,
    kept: Sequence[bool] | None = None,
    cost: float = 0.1,
    minimum: int = 0,
) -> Gates:
    """By default what is used in less than 0.95 of the mini-batches is unused, and everything is left."""
    flags = torch.tensor(usage) < 0.95 if unused is None else torch.tensor(unused)
    on = [True] * len(usage) if kept is None else kept
    return Gates(flags, torch.tensor(usage), torch.tensor(means or [1.0] * len(usage)), torch.tensor(on), cost, minimum)


def close(*groups: Gates, most: float = 1.0, wanted: float = 1.0) -> list[list[int]]:
    """The numbers of the gates that go."""
    return [mask.nonzero().flatten().tolist() for mask in to_close(groups, most=most, wanted=wanted)]


def test_what_is_unused_goes() -> None:
    assert close(group([0.5, 1.0, 0.0]), group([1.0]), group([0.9])) == [[0, 2], [], [0]]


def test_the_least_used_go_first_where_not_all_may() -> None:
    groups = group([0.5, 1.0, 0.2, 0.8]), group([0.3], cost=0.2)
    assert close(*groups, most=0.1) == [[2], []]
    assert close(*groups, most=0.3) == [[2], [0]]
    assert close(*groups, most=0.4) == [[0, 2], [0]]


def test_the_first_may_cost_more_than_the_most() -> None:
    assert close(group([0.5, 0.6], cost=0.4), most=0.1) == [[0]]


def test_nothing_goes_beyond_the_goal() -> None:
    gates = group([0.1, 0.2, 0.3, 0.4])
    assert close(gates, wanted=0.25) == [[0, 1, 2]]
    assert close(gates, wanted=0.3) == [[0, 1, 2]]  # though 0.1 + 0.1 + 0.1 is not 0.3
    assert close(gates, wanted=0.0) == [[]]


def test_where_none_is_unused_the_least_used_goes_alone() -> None:
    assert close(group([1.0, 0.99, 0.97]), group([0.98])) == [[2], []]


def test_of_those_used_alike_the_weakest_goes() -> None:
    assert close(group([1.0, 1.0], means=[1.5, 1.2]), group([1.0], means=[1.1])) == [[], [0]]


def test_progress_where_what_is_unused_must_stay() -> None:
    """The first layer of a decoder keeps a KV group, which may be the least used of all."""
    staying = group([0.0], minimum=1)
    assert close(staying, group([1.0, 0.99])) == [[], [1]]
    assert close(group([0.0, 0.1], minimum=1), group([1.0])) == [[0], []]


def test_one_gate_stays() -> None:
    assert close(group([0.0, 0.0]), group([0.0])) == [[0, 1], []]
    assert close(group([0.0, 0.0], kept=[False, True]), group([NAN], kept=[False])) == [[], []]


def test_what_is_gone_does_not_go_again() -> None:
    assert close(group([NAN, 0.5], kept=[False, True]), group([0.6], kept=[False]), group([1.0])) == [[1], [], []]


def test_what_is_not_known_stays() -> None:
    assert close(group([NAN, 0.5, 0.4], means=[1.0, NAN, 1.0])) == [[2]]
    assert close(group([NAN, NAN], unused=[True, False])) == [[]]


@st.composite
def groups_of_gates(draw: st.DrawFn) -> list[Gates]:
    """Up to four groups; usages are shares of eight mini-batches."""
    found = []
    for size in draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)):
        eighths = st.integers(0, 8).map(lambda count: count / 8)
        usage = draw(st.lists(eighths | st.just(NAN), min_size=size, max_size=size))
        kept = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        means = draw(st.lists(st.floats(0, 9), min_size=size, max_size=size))
        minimum = draw(st.integers(0, 1)) if any(kept) else 0
        found.append(
            group(usage, means=means, kept=kept, cost=draw(st.sampled_from((0.02, 0.1, 0.3))), minimum=minimum)
        )
    return found


@given(groups_of_gates(), st.sampled_from((0.01, 0.1, 0.5, 1.0)), st.sampled_from((0.05, 0.3, 1.0)))
def test_whatever_the_gates(groups: list[Gates], most: float, wanted: float) -> None:
    closed = to_close(groups, most=most, wanted=wanted)
    left = [item.kept & ~mask for item, mask in zip(groups, closed, strict=True)]
    assert all(not (mask & ~item.kept).any() for item, mask in zip(groups, closed, strict=True))
    assert all(not (mask & item.usage.isnan()).any() for item, mask in zip(groups, closed, strict=True))
    assert all(int(mask.sum()) >= item.minimum for item, mask in zip(groups, left, strict=True))
    if any(item.kept.any() for item in groups):
        assert sum(int(mask.sum()) for mask in left) >= 1

    costs = [item.cost for item, mask in zip(groups, closed, strict=True) for _ in range(int(mask.sum()))]
    assert len(costs) <= 1 or sum(costs) <= most + 1e-6 or not costs
    assert len(costs) == 0 or sum(costs) - max(costs) < wanted

    # Nothing that is used goes beside others, and where anything may go something does.
    used = sum(int((mask & ~item.unused).sum()) for item, mask in zip(groups, closed, strict=True))
    assert used == 0 or (used == 1 and len(costs) == 1)
    free = [int((item.kept & ~item.usage.isnan()).sum()) > 0 and int(item.kept.sum()) > item.minimum for item in groups]
    if sum(int(item.kept.sum()) for item in groups) > 1 and any(free):
        assert costs

    # What goes is at most as much used as what stays, where both might go.
    for item, mask in zip(groups, closed, strict=True):
        both = item.kept & ~item.usage.isnan()
        if mask.any() and (both & ~mask).any():
            assert item.usage[mask].max() <= item.usage[both & ~mask].min()


@given(groups_of_gates(), st.integers(0, 10**6))
def test_the_order_of_the_groups_does_not_matter(groups: list[Gates], seed: int) -> None:
    """As long as no two gates are alike."""
    count = sum(len(item.kept) for item in groups)
    means = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).float()
    parts = means.split([len(item.kept) for item in groups])
    distinct = [replace(item, means=part) for item, part in zip(groups, parts, strict=True)]
    forward = to_close(distinct, most=0.3, wanted=1.0)
    backward = to_close(distinct[::-1], most=0.3, wanted=1.0)[::-1]
    assert all(torch.equal(one, other) for one, other in zip(forward, backward, strict=True))
