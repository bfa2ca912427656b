from __future__ import annotations

import math

import pytest
import torch

from hf_prune.scores import block_influence


def test_it_is_one_minus_the_cosine_at_each_position() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    found = block_influence(inputs, outputs)
    assert found.shape == (2, 3)
    for row in range(2):
        for position in range(3):
            one, other = inputs[row, position].tolist(), outputs[row, position].tolist()
            product = sum(a * b for a, b in zip(one, other, strict=True))
            norms = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
            assert found[row, position].item() == pytest.approx(1 - product / norms, abs=1e-9)


def test_its_ends() -> None:
    hidden = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert block_influence(hidden, 3 * hidden).tolist() == pytest.approx([0, 0], abs=1e-9)
    assert block_influence(hidden, -hidden).tolist() == pytest.approx([2, 2], abs=1e-9)
