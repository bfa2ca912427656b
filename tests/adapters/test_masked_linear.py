from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hf_prune.adapters.static_mask.masked_linear import masked_linear


def case(transposed: bool = False, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((7, 5) if transposed else (5, 7), generator=generator).to(dtype)
    return {
        "inputs": torch.randn(2, 3, 7, generator=generator).to(dtype).requires_grad_(),
        "weight": weight,
        "bias": torch.randn(5, generator=generator).to(dtype).requires_grad_(),
        "kept": torch.rand(weight.shape, generator=generator) > 0.4,
        "scores": torch.zeros(weight.shape, requires_grad=True),
    }


@pytest.mark.parametrize("transposed", [False, True])
def test_against_autograd_on_the_masked_weight(transposed: bool) -> None:
    given = case(transposed)
    masked = (given["weight"] * given["kept"]).requires_grad_()
    inputs, bias = (given[name].detach().clone().requires_grad_() for name in ("inputs", "bias"))
    expected = F.linear(inputs, masked.t() if transposed else masked, bias)
    factors = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * factors).sum().backward()

    found = masked_linear(**given, transposed=transposed)
    (found * factors).sum().backward()
    assert torch.equal(found, expected)
    assert torch.allclose(given["inputs"].grad, inputs.grad, atol=1e-6)
    assert torch.allclose(given["bias"].grad, bias.grad, atol=1e-6)
    assert torch.allclose(given["scores"].grad, masked.grad * given["weight"], atol=1e-6)
    assert given["scores"].grad[~given["kept"]].abs().min() > 0  # removed weights' scores learn, too


def test_weight_has_no_gradient_and_no_graph() -> None:
    given = case()
    given["weight"].requires_grad_()
    masked_linear(**given).sum().backward()
    assert given["weight"].grad is None


def test_without_scores_and_bias() -> None:
    given = case()
    found = masked_linear(given["inputs"], given["weight"], None, given["kept"])
    found.sum().backward()
    expected = (given["weight"] * given["kept"]).sum(0).expand(2, 3, 7)
    assert torch.allclose(given["inputs"].grad, expected, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_scores_learn_in_float32(autocast: bool) -> None:
    given = case(dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = masked_linear(**given)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    full = {name: value.detach().float() for name, value in given.items() if name != "kept"}
    masked = (full["weight"] * given["kept"]).requires_grad_()
    F.linear(full["inputs"], masked, full["bias"]).square().sum().backward()
    expected = masked.grad * full["weight"]
    assert given["scores"].grad.dtype == torch.float32
    assert torch.allclose(given["scores"].grad, expected, rtol=0.05, atol=0.05 * float(expected.abs().mean()))


def test_masked_weight_is_not_kept_for_the_backward_pass() -> None:
    given = case()
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value) or value, lambda value: value):
        masked_linear(**given)
    assert {value.data_ptr() for value in saved} == {given[name].data_ptr() for name in ("inputs", "weight", "kept")}
