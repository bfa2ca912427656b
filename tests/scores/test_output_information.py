"""How much errors of a block's output count, against gradients of one example at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import PruningError, describe_model
from hf_prune.anatomy import Block
from hf_prune.scores import OutputInformation, iterate_gradients, iterate_model_gradients, metric_root
from tests.mixtures import mixture
from tests.scores.one_at_a_time import single_examples
from tests.small_models import Batch, Case, case


def output_gradients(model: PreTrainedModel, block: Block, example: Batch) -> torch.Tensor:
    """∂loss / ∂output of a block's output projection, `[tokens, hidden]`."""
    seen: list[torch.Tensor] = []
    projection = model.get_submodule(block.layer).get_submodule(block.output.path)
    handle = projection.register_forward_hook(lambda module, args, output: seen.append(output))
    loss = model(**example).loss
    handle.remove()
    return torch.autograd.grad(loss, seen[0])[0].flatten(0, -2)


def by_one_example_at_a_time(model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
    found = {}
    for block in describe_model(model).blocks:
        gradients = torch.cat([output_gradients(model, block, example) for example in single_examples(batch)])
        found[block.key] = gradients.T @ gradients
    return found


@pytest.mark.parametrize("item", [case("bert", "classification"), case("distilbert", "tokens")], ids=str)
def test_equal_to_one_example_at_a_time(item: Case) -> None:
    model, batch = item.model().double(), item.batch()
    anatomy = describe_model(model)
    information = OutputInformation(model, anatomy)
    for _ in iterate_gradients(model, anatomy, [batch, batch], information):
        pass
    for key, expected in by_one_example_at_a_time(model, batch).items():
        assert expected.abs().max() > 1e-6
        assert torch.allclose(information.matrices[key], 2 * expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def test_over_the_models_own_labels() -> None:
    item = case("bert", "classification")
    model, batch = item.model().double(), item.batch(lengths=(6,))
    anatomy = describe_model(model)
    information = OutputInformation(model, anatomy)
    for _ in iterate_model_gradients(model, anatomy, [batch], information):
        pass
    with torch.no_grad():
        chances = model(**batch).logits.softmax(-1)[0]
    each = [by_one_example_at_a_time(model, batch | {"labels": torch.tensor([label])}) for label in range(3)]
    for key, found in information.matrices.items():
        expected = sum(chance * matrices[key] for chance, matrices in zip(chances, each, strict=True))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def test_nothing_is_left_on_the_model_and_nothing_is_watched_outside() -> None:
    item = case("bert", "classification")
    model, batch = item.model(), item.batch()
    anatomy = describe_model(model)
    information = OutputInformation(model, anatomy)
    with information:
        assert any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    for _ in iterate_gradients(model, anatomy, [batch]):
        pass
    assert not any(matrix.any() for matrix in information.matrices.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_metric_that_is_not_finite_has_no_root(value: float) -> None:
    metric = torch.eye(3, dtype=torch.float64)
    metric[1, 2] = metric[2, 1] = value
    with pytest.raises(PruningError, match="output are not finite"):
        metric_root(metric)


def test_experts_are_left_out() -> None:
    model = mixture("mixtral")
    blocks = describe_model(model).blocks
    expected = {block.key for block in blocks if block.output.expert is None}
    assert set(OutputInformation(model, describe_model(model)).matrices) == expected
    assert len(expected) < len(blocks)


class TestMetricRoot:
    def test_squared_is_the_metric(self) -> None:
        rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        root = metric_root(rows.T @ rows)
        assert root.shape == (3, 6)
        assert torch.allclose(root.T @ root, rows.T @ rows)

    def test_of_nothing(self) -> None:
        assert metric_root(torch.zeros(4, 4)).shape == (0, 4)
