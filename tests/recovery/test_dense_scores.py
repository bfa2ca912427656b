"""Predicted errors of a cut, against the error that the refitted block makes."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy import Block, ModelAnatomy
from hf_prune.calibration import CalibrationData
from hf_prune.recovery import (
    ReconstructionProblem,
    contributed_energies,
    reconstruct,
    refit_projection,
    removal_curves,
)
from hf_prune.recovery.dense_blocks import mean_gram
from hf_prune.recovery.normal_equations import NormalEquations
from hf_prune.scores import RemovalCurve
from tests import mixtures
from tests.small_models import HIDDEN, Batch, Case, case

ITEMS = [case("bert", "masked"), case("distilbert", "masked"), case("bert", "cross_attention")]


def batches(item: Case, number: int = 6) -> list[Batch]:
    return [
        {name: value.double() if value.is_floating_point() else value for name, value in item.batch(seed).items()}
        for seed in range(number)
    ]


def metrics_of(anatomy: ModelAnatomy) -> dict[str, torch.Tensor]:
    """Some directions of every block's output count much more than others."""
    found = {}
    for seed, block in enumerate(anatomy.blocks):
        rows = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found[block.key] = rows.T @ rows
    return found


def curves_of(
    model: PreTrainedModel, data: list[Batch], metrics: dict[str, torch.Tensor], ridge: float = 1e-10
) -> dict[str, RemovalCurve]:
    anatomy = describe_model(model)
    return removal_curves(model, anatomy, CalibrationData(data, model), data, metrics, ridge=ridge)


def projection_inputs(model: PreTrainedModel, block: Block, data: list[Batch]) -> torch.Tensor:
    """What enters a block's output projection at the positions that are not padding, `[tokens, columns]`."""
    seen: list[torch.Tensor] = []
    projection = model.get_submodule(block.layer).get_submodule(block.output.path)
    handle = projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in data:
            model(**batch)
    handle.remove()
    return torch.cat([rows[batch["attention_mask"].bool()] for rows, batch in zip(seen, data, strict=True)])


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_predicted_is_what_least_squares_on_all_tokens_leaves(item: Case) -> None:
    model, data = item.model().double(), batches(item)
    anatomy = describe_model(model)
    metrics = metrics_of(anatomy)
    curves = curves_of(model, data, metrics)
    assert set(curves) == {block.key for block in anatomy.blocks}
    for block in anatomy.blocks:
        inputs = projection_inputs(model, block, data)
        weight = model.get_submodule(block.layer).get_submodule(block.output.path).weight.detach()
        for removed in (1, block.units // 2, block.units):
            kept = block.columns_of(sorted(curves[block.key].order[removed:].tolist()))
            tokens = torch.cat([inputs[:, kept], torch.ones(len(inputs), 1)], dim=1)
            wanted = inputs @ weight.T
            left = wanted - tokens @ torch.linalg.lstsq(tokens, wanted).solution
            expected = float(((left @ metrics[block.key]) * left).sum() / len(inputs))
            assert float(curves[block.key].errors[:removed].sum()) == pytest.approx(expected, rel=1e-5)


def test_predicted_is_the_error_that_the_reconstruction_measures() -> None:
    item = ITEMS[0]
    model, data = item.model().double(), batches(item)
    anatomy = describe_model(model)
    curves = curves_of(model, data, {block.key: torch.eye(HIDDEN).double() for block in anatomy.blocks})
    for block in anatomy.blocks:
        removed = block.units // 2
        units = {other.key: list(range(other.units)) for other in anatomy.blocks}
        units[block.key] = sorted(curves[block.key].order[removed:].tolist())
        measured = {}

        def solve(problem: ReconstructionProblem, measured=measured) -> None:
            equations = problem.fit + problem.held_out
            repair = refit_projection(equations, problem.weight, problem.bias, 0.0)
            measured[problem.block.key] = equations.error(*repair) / float(equations.tokens)

        reconstruct(model, anatomy, units, CalibrationData(data, model), data, solve)
        assert float(curves[block.key].errors[:removed].sum()) == pytest.approx(measured[block.key], rel=1e-5)


def test_energies_are_those_of_single_units_contributions() -> None:
    """What is left of a block's output when all other units are off, around its mean."""
    item = ITEMS[0]
    model, data = item.model().double(), batches(item)
    anatomy = describe_model(model)
    energies = contributed_energies(model, anatomy, CalibrationData(data, model), data)
    for block in anatomy.blocks:
        inputs = projection_inputs(model, block, data)
        weight = model.get_submodule(block.layer).get_submodule(block.output.path).weight.detach()
        for unit in (0, block.units - 1):
            columns = block.columns_of([unit])
            part = inputs[:, columns] @ weight[:, columns].T
            expected = float((part - part.mean(0)).square().sum() / len(part))
            assert float(energies[block.key][unit]) == pytest.approx(expected, rel=1e-5)


def test_model_is_left_alone() -> None:
    item = ITEMS[0]
    model, data = item.model(), batches(item)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    curves_of(model, data, metrics_of(describe_model(model)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_blocks_without_a_metric_and_experts_have_no_curve() -> None:
    model = mixtures.mixture("mixtral")
    anatomy = describe_model(model)
    attentions = [block.key for block in anatomy.attentions]
    curves = curves_of(model, [mixtures.batch()], dict.fromkeys(attentions[1:], torch.eye(mixtures.HIDDEN)), 1e-3)
    assert list(curves) == attentions[1:]


def test_progress_names_every_block() -> None:
    item = ITEMS[0]
    model, data = item.model(), [item.batch()]
    anatomy, seen = describe_model(model), []
    removal_curves(model, anatomy, CalibrationData(data, model), data, {}, seen.append)
    assert seen == [block.key for block in anatomy.blocks]


def test_covariances_are_those_of_the_tokens() -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 3
    equations = NormalEquations.zeros(6, 0, rows.device)
    equations.add(rows, rows.new_zeros(50, 0))
    assert torch.allclose(mean_gram(equations, centred=True), rows.T.cov(correction=0))
    assert torch.allclose(mean_gram(equations, centred=False), rows.T @ rows / 50)


def test_inputs_that_do_not_vary_have_no_covariance() -> None:
    row = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    equations = NormalEquations.zeros(6, 0, row.device)
    equations.add(row.expand(3001, 6), row.new_zeros(3001, 0))
    sums = equations.gram / equations.tokens
    assert (sums[:-1, :-1] - sums[:-1, -1:] * sums[:-1, -1]).any()  # by rounding
    assert not mean_gram(equations, centred=True).any()
