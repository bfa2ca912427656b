"""The ε-gate and the arithmetic below it, against the paper's formula, literal loops and materialised products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune import PruningError
from hf_prune.gates import contributions, epsilon_gate
from hf_prune.gates.contributions import largest_contributions, open_contributions
from hf_prune.gates.positions import Positions
from hf_prune.gates.tally import Tally

EPSILON = 0.5
LARGE = 1e5  # the paper's L


def paper(values: torch.Tensor) -> torch.Tensor:
    """t(F) · F as the paper writes it, for one example."""
    gate = 1 - torch.relu(1 - LARGE * torch.relu(values.abs() - EPSILON).max())
    return gate.clamp(max=1) * values


@pytest.mark.parametrize(
    ("largest", "opened"), [(0.2, False), (0.5 - 1e-9, False), (0.5, False), (0.5 + 2e-5, True), (3.0, True)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_values_and_gradient_are_those_of_the_papers_formula(largest: float, opened: bool, sign: int) -> None:
    values = torch.tensor([[0.1, -0.05, sign * largest], [0.0, 0.19, -0.1]], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    found, expected = epsilon_gate(values, EPSILON), paper(values)
    assert torch.equal(found, expected)
    assert bool(found.any()) is opened
    [gradient] = torch.autograd.grad((found * weights).sum(), values)
    assert torch.equal(gradient, weights * opened)
    assert torch.equal(gradient, torch.autograd.grad((expected * weights).sum(), values)[0])


def test_the_gradient_does_not_blow_up_just_above_the_threshold() -> None:
    values = torch.tensor([[EPSILON + 1e-6, 0.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(paper(values).sum(), values)[0].abs().max() > 1e4
    assert torch.autograd.grad(epsilon_gate(values, EPSILON).sum(), values)[0].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (3, 4, 2, 5)])
@pytest.mark.parametrize("reduction", ["batch", "example"])
def test_one_gate_per_batch_or_per_example(shape: tuple[int, ...], reduction: str) -> None:
    values = 0.1 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    values[1].flatten()[3] = -0.7
    found = epsilon_gate(values, EPSILON, reduction=reduction)
    for example in range(3):
        kept = reduction == "batch" or example == 1
        assert torch.equal(found[example], values[example] if kept else torch.zeros_like(values[example]))


@pytest.mark.parametrize("mask", [torch.tensor([[1, 1], [1, 0]]), torch.tensor([[True, True], [True, False]])])
@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 2, 2, 3)])
def test_padding_does_not_open_a_gate(mask: torch.Tensor, shape: tuple[int, ...]) -> None:
    values = torch.full(shape, 0.1)
    values[1, 1] = 9.0
    assert not epsilon_gate(values, EPSILON, mask=mask).any()
    assert torch.equal(epsilon_gate(values, EPSILON), values)
    values[1, 0] = 0.6
    by_example = epsilon_gate(values, EPSILON, reduction="example", mask=mask)
    assert not by_example[0].any()
    assert torch.equal(by_example[1], values[1])


def test_padding_that_is_not_a_number_stays_out_of_a_closed_gate() -> None:
    values = torch.full((1, 2, 3), 0.1)
    values[0, 1] = torch.nan
    assert not epsilon_gate(values, EPSILON, mask=torch.tensor([[1, 0]])).any()


def test_values_that_are_no_numbers_are_not_hidden() -> None:
    values = torch.tensor([[0.1, torch.nan], [0.1, 0.1], [torch.inf, 0.1]])
    assert epsilon_gate(values, EPSILON, reduction="example").isfinite().tolist() == [
        [True, False],
        [True, True],
        [False, True],
    ]
    slices, weights, positions = contributions_of(0)
    slices[1, 2, 3, 0] = torch.nan
    positions.mask[1] = torch.tensor([True, False, True, False])

    def opened() -> torch.Tensor:
        return open_contributions(slices, weights, range(5), lambda rows: positions.in_groups(rows, "example"), 1e9)

    assert opened().nonzero().tolist() == [[1, 3]]
    positions.mask[1, 2] = False
    assert not opened().any()


@pytest.mark.parametrize(
    ("kind", "value", "epsilon", "opened"),
    [
        (torch.float16, 60000.0, 60001.0, False),  # 60001 is 60000 in float16, and L times it is infinite
        (torch.float16, 60000.0, 59999.0, True),
        (torch.bfloat16, 1.0078125, 1.005, True),  # 1.005 is 1.0078125 in bfloat16
        (torch.bfloat16, 1.0, 1.001, False),
    ],
)
def test_half_precision_is_compared_in_float32(kind: torch.dtype, value: float, epsilon: float, opened: bool) -> None:
    found = epsilon_gate(torch.tensor([[value, 0.0]], dtype=kind), epsilon)
    assert found.dtype == kind
    assert found.tolist() == [[value if opened else 0.0, 0.0]]


@pytest.mark.parametrize("epsilon", [float("nan"), float("inf"), -0.1])
def test_thresholds_that_make_no_sense(epsilon: float) -> None:
    with pytest.raises(PruningError, match=r"epsilon=(nan|inf|-0\.1): .* must be finite and at least 0"):
        epsilon_gate(torch.ones(2, 3), epsilon)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.ones(3), {}, r"shape \[batch, \.\.\., entries\], got \(3,\)"),
        (torch.ones(2, 0), {}, r"got \(2, 0\)"),
        (torch.ones(2, 3), {"reduction": "token"}, "reduction='token' is unknown; it must be 'batch' or 'example'"),
        (torch.ones(2, 3, 4), {"mask": torch.ones(2, 4)}, r"mask of shape \(2, 4\) does not fit values of shape"),
    ],
)
def test_arguments_that_do_not_fit(values: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        epsilon_gate(values, 0.5, **options)


def contributions_of(seed: int, examples: int = 3) -> tuple[torch.Tensor, torch.Tensor, Positions]:
    """Slices `[examples, 4, 5, 2]`, weights `[5, 2, 6]` of very different sizes, and positions with padding."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(5, generator=generator)
    slices = torch.randn(examples, 4, 5, 2, generator=generator) * sizes[:, None]
    mask = torch.rand(examples, 4, generator=generator) < 0.7
    return slices, torch.randn(5, 2, 6, generator=generator), Positions(examples, mask)


def materialised(slices: torch.Tensor, weights: torch.Tensor, positions: Positions, reduction: str) -> torch.Tensor:
    """max|head · W|, `[groups, units]`, with all products at hand."""
    products = torch.einsum("btuw,uwh->btuh", slices, weights).abs() * positions.mask[..., None, None]
    return products.amax((0, 1, 3))[None] if reduction == "batch" else products.amax((1, 3))


@pytest.mark.parametrize("reduction", ["batch", "example"])
@given(seed=st.integers(0, 10_000), epsilon=st.floats(0, 4, width=32))
@settings(max_examples=60, deadline=None)
def test_contributions_are_those_of_the_materialised_products(reduction: str, seed: int, epsilon: float) -> None:
    slices, weights, positions = contributions_of(seed)
    units = [0, 1, 3, 4]
    expected = materialised(slices, weights, positions, reduction)

    def grouped(rows: torch.Tensor) -> torch.Tensor:
        return positions.in_groups(rows, reduction)

    found = largest_contributions(slices, weights, units, grouped)
    assert torch.allclose(found[:, units], expected[:, units], rtol=1e-5)
    assert not found[:, 2].any()
    opened = open_contributions(slices, weights, units, grouped, epsilon)
    assert not opened[:, 2].any()
    far = (expected - epsilon).abs() > 1e-5
    far[:, 2] = False
    assert torch.equal(opened[far], (expected > epsilon)[far])


def test_products_are_made_only_where_they_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    # One slice per unit: (1, 0) at one position and half of it at the others. The longest one gives 1 at most.
    slices = torch.tensor([0.5, 1.0, 0.5])[None, :, None, None] * torch.tensor([1.0, 0.0]).expand(1, 3, 3, 2)
    weights = torch.zeros(3, 2, 4)
    weights[0, 0, 0] = 0.3  # at most 0.3: closed
    weights[1, 0, 0] = 1.0  # 1 at the longest slice: open
    weights[2, 0, 0] = 0.4  # 0.4 at the longest slice, but no more than 1.3 anywhere
    weights[2, 1, 0] = 1.2
    asked: list[list[int]] = []

    def watched(*args):
        asked.append(args[2])
        return largest_contributions(*args)

    monkeypatch.setattr(contributions, "largest_contributions", watched)
    positions = Positions(1)
    opened = open_contributions(slices, weights, [0, 1, 2], lambda rows: positions.in_groups(rows, "batch"), 0.5)
    assert opened.tolist() == [[False, True, False]]
    assert asked == [[2]]


def test_half_precision_does_not_overflow() -> None:
    slices = torch.full((1, 2, 1, 8), 300.0, dtype=torch.float16)
    weights = torch.full((1, 8, 4), 300.0, dtype=torch.float16)
    positions = Positions(1)

    def grouped(rows: torch.Tensor) -> torch.Tensor:
        return positions.in_groups(rows, "batch")

    assert largest_contributions(slices, weights, [0], grouped).tolist() == [[720000.0]]
    assert open_contributions(slices, weights, [0], grouped, 719999.0).tolist() == [[True]]
    assert open_contributions(slices, weights, [0], grouped, 720001.0).tolist() == [[False]]


@pytest.mark.parametrize("rows", [torch.arange(1.0, 7.0).reshape(2, 3, 1), torch.arange(1.0, 7.0).reshape(6, 1)])
def test_positions_in_groups(rows: torch.Tensor) -> None:
    positions = Positions(2, torch.tensor([[True, True, False], [True, False, False]]))
    assert positions.in_groups(rows, "batch").tolist() == [[[1], [2], [0], [4], [0], [0]]]
    assert positions.in_groups(rows, "example").tolist() == [[[1], [2], [0]], [[4], [0], [0]]]
    others = torch.ones(4, 5, 1)  # two windows per example: the mask says nothing about them
    assert positions.in_groups(others, "example").shape == (2, 10, 1)
    assert positions.in_groups(others, "batch").sum() == 20


def test_positions_that_do_not_keep_examples_apart() -> None:
    with pytest.raises(PruningError, match="do not keep 2 examples apart in their first axis"):
        Positions(2).in_groups(torch.ones(3, 4, 1), "example")


def test_a_tally_takes_the_largest_of_several_runs_and_counts_them_once() -> None:
    tally = Tally(2)
    assert tally.mean().isnan().all()
    for batch in ([[[1.0, 5.0]], [[3.0, 2.0]]], [[[2.0, 0.0]]]):
        for run in batch:
            tally.see(torch.tensor(run))
        tally.end_batch()
    tally.end_batch()
    assert tally.mean().tolist() == [2.5, 2.5]
    assert float(tally.count) == 2
    tally.reset()
    tally.see(torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]))  # three examples
    tally.end_batch()
    assert tally.mean().tolist() == pytest.approx([2 / 3, 1 / 3])


def test_runs_on_other_examples_cannot_be_put_together() -> None:
    tally = Tally(1)
    tally.see(torch.ones(2, 1))
    with pytest.raises(PruningError, match=r"on 2 and on 3 examples .* reduction='batch'"):
        tally.see(torch.ones(3, 1))
