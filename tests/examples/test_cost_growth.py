"""The benchmark of growing costs: its fit, what it times, and a run on tiny sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cost_growth
import pytest
import torch
from cost_growth import Growth

from hf_prune.recovery import NormalEquations


def test_the_exponent_of_a_power() -> None:
    sizes = (3, 6, 12, 24)
    assert cost_growth.exponent(sizes, [0.2 * size**1.7 for size in sizes]) == pytest.approx(1.7)


def test_sums_are_timed_and_still_made() -> None:
    rows = torch.randn(5, 4)
    equations = NormalEquations.zeros(3, 2, rows.device)
    with cost_growth.timed_sums() as seconds:
        equations.add_extended(rows, rows[:, :2])
    assert len(seconds) == 1
    assert torch.equal(equations.gram, (rows.T @ rows).double())


def test_the_sums_are_over_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[NormalEquations] = []
    add = NormalEquations.add_extended

    def watched(equations: NormalEquations, *given: torch.Tensor) -> None:
        add(equations, *given)
        seen.append(equations)

    monkeypatch.setattr(NormalEquations, "add_extended", watched)
    assert cost_growth.sums_of_squares(8, 128) > 0
    assert [(tuple(equations.gram.shape), int(equations.tokens)) for equations in seen] == [((9, 9), 128)]


def test_sizes_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    growth = Growth("size", "time", (1, 2, 4), lambda size: order.append(size) or float(size**2 + len(order)))
    found = cost_growth.measured(growth, rounds=3)
    assert order == [1] + 3 * [1, 2, 4]
    assert found["seconds"] == [[3, 6, 9], [7, 10, 13], [20, 23, 26]]
    assert found["medians"] == [6, 10, 23]


def test_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {
        "layers": ((1, 2), lambda layers: cost_growth.whole_call(layers, 4)),
        "examples": ((4, 8), lambda examples: cost_growth.whole_call(1, examples)),
        "filters": ((8, 16), lambda filters: cost_growth.sums_of_squares(filters, 128)),
        "tokens": ((128, 256), lambda tokens: cost_growth.sums_of_squares(8, tokens)),
    }
    growths = [
        replace(growth, sizes=small[growth.name][0], measure=small[growth.name][1]) for growth in cost_growth.GROWTHS
    ]
    monkeypatch.setattr(cost_growth, "GROWTHS", growths)
    cost_growth.main(["--rounds", "1", "--output", str(tmp_path / "growth.json")])
    found = json.loads((tmp_path / "growth.json").read_text(encoding="utf8"))["growths"]
    assert list(found) == ["layers", "examples", "filters", "tokens"]
    assert all(min(one["medians"]) > 0 and len(one["seconds"]) == 2 for one in found.values())
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert "| filters (sums, 2,048 tokens)" in capsys.readouterr().out
