from __future__ import annotations

import torch

from hf_prune.scores import moments_of, put_moments, stored_moments


def trained(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, steps: range) -> None:
    for step in steps:
        parameter.grad = torch.linspace(-1, 1, len(parameter)) * (step + 1)
        optimizer.step()


def test_an_optimizer_goes_on_bit_for_bit() -> None:
    one, other = (torch.zeros(5, requires_grad=True) for _ in range(2))
    first, second = torch.optim.Adam([one]), torch.optim.Adam([other])
    assert not moments_of(first, one, "gate")
    trained(first, one, range(3))
    state = moments_of(first, one, "gate")
    assert set(state) == {"gate.exp_avg", "gate.exp_avg_sq", "gate.step"}
    assert state["gate.step"] == 3
    other.data.copy_(one.detach())
    trained(first, one, range(3, 6))
    put_moments(second, other, stored_moments({**state, "gates.step": torch.tensor(7.0)}, "gate"))
    trained(second, other, range(3, 6))
    assert torch.equal(one, other)
    assert state["gate.step"] == 3  # neither optimizer has the state's tensors


def test_without_stored_moments_an_optimizer_begins_anew() -> None:
    used, new = (torch.zeros(5, requires_grad=True) for _ in range(2))
    first, second = torch.optim.Adam([used]), torch.optim.Adam([new])
    trained(first, used, range(3))
    used.data.zero_()
    put_moments(first, used, stored_moments({}, "gate"))
    trained(first, used, range(2))
    trained(second, new, range(2))
    assert torch.equal(used, new)


def test_another_optimizer_has_no_moments() -> None:
    parameter = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], momentum=0.9)
    trained(optimizer, parameter, range(2))
    assert not moments_of(optimizer, parameter, "gate")
