"""ε-gates that are stored, averaged over processes, or asked for what they cannot do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hf_prune import PruningError, UnsupportedModelError, describe_model
from hf_prune.gates import EpsilonGates, add_epsilon_gates, residual_mappings
from hf_prune.processes import average
from tests.conformance.plans import prune, run
from tests.family_models import main_head, sample
from tests.gates.measured_bert import BERT, EPSILON, bert
from tests.gates.test_unit_gates import footprint

FIRST = "encoder.layer.0.attention.heads"


def test_continues_where_the_state_was_taken() -> None:
    model = bert()
    gates = add_epsilon_gates(model)
    run(model, BERT.batch(0))
    gates.gate(EPSILON)
    gates.close([torch.arange(mapping.gates) != 0 for mapping in gates.mappings])
    run(model, BERT.batch(1))
    state = gates.state()
    assert all(tensor.device.type == "cpu" for tensor in state.values())
    twin = bert()
    other = add_epsilon_gates(twin)
    other.load_state(state)
    assert (other.mode, other.epsilon) == ("gated", EPSILON)
    for item in (model, twin):
        run(item, BERT.batch(2))
    assert all(map(torch.equal, other.kept, gates.kept))
    for read in (EpsilonGates.usage, EpsilonGates.mean_maxima):
        for one, two in zip(read(gates), read(other), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    assert float(gates.accumulators()[3]) == 2
    gates.record()
    other.load_state(gates.state())
    assert other.mode == "open"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop(f"{FIRST}.kept"), "the mask must be a bool tensor"),
        (lambda state: state.pop(f"{FIRST}.maxima.total"), "what was stored is missing"),
        (
            lambda state: state.update({"encoder.layer.1.attention.heads.opened.total": torch.ones(9)}),
            r"of shape \(9,\)",
        ),
        (lambda state: state.update({"epsilon.heads": torch.tensor(1.0)}), "epsilon is given for heads, and the gates"),
    ],
)
def test_states_that_do_not_fit(damage: Callable[[dict], object], message: str) -> None:
    gates = add_epsilon_gates(bert())
    state = gates.state()
    damage(state)
    with pytest.raises(PruningError, match=message):
        gates.load_state(state)
    assert gates.mode == "open"


def test_accumulators_are_what_processes_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that saw two and one mini-batches know the mean over all three."""
    model = bert()
    gates = add_epsilon_gates(model)
    shares = []
    for seeds in ((0, 1), (2,)):
        gates.reset()
        for seed in seeds:
            run(model, BERT.batch(seed))
        shares.append([tensor.clone() for tensor in gates.accumulators()])
    own = iter(shares[0])
    monkeypatch.setattr("hf_prune.processes.process_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(next(own)))
    average(gates.accumulators())
    together = gates.mean_maxima()
    gates.reset()
    for seed in range(3):
        run(model, BERT.batch(seed))
    for found, expected in zip(together, gates.mean_maxima(), strict=True):
        torch.testing.assert_close(found, expected)


def test_resetting_forgets_the_batch_under_way() -> None:
    model = bert()
    gates = add_epsilon_gates(model)
    run(model, BERT.batch())
    gates.reset()
    assert all(values.isnan().all() for values in gates.mean_maxima())


def test_blocks_without_units_have_no_mapping() -> None:
    model = BERT.model()
    assert [len(mapping.blocks) for mapping in residual_mappings(describe_model(model), ["layer"])] == [2, 2, 2]
    prune(model, BERT.batch())  # leaves the second attention and the third feed-forward sublayer without
    with add_epsilon_gates(model.train()) as gates:
        model(**BERT.batch())
        assert [len(values) for values in gates.mean_maxima()] == [2, 1, 1, 4]
        assert all(values.isfinite().all() for values in gates.mean_maxima())
    layers = residual_mappings(describe_model(model), ["layer"])
    assert [[block.kind for block in mapping.blocks] for mapping in layers] == [
        ["attention", "feed_forward"],
        ["feed_forward"],
        ["attention"],
    ]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ((), r"kinds=\(\) must be one or more of heads, attention, feed_forward, layer"),
        (("head",), "must be one or more of"),
        (("heads", "attention"), "overlap"),
        (("layer", "feed_forward"), "overlap"),
    ],
)
def test_kinds_that_make_no_sense(kinds: tuple, message: str) -> None:
    model = bert()
    before = footprint(model)
    with pytest.raises(PruningError, match=message):
        add_epsilon_gates(model, kinds=kinds)
    assert footprint(model) == before


def test_experts_have_no_feed_forward_gates() -> None:
    model = main_head("mixtral").model().train()
    with pytest.raises(UnsupportedModelError, match=r"mixture of experts.*kinds=\('heads',\)"):
        add_epsilon_gates(model)
    with add_epsilon_gates(model, kinds=["heads"]) as gates:
        model(**sample(model))
        assert all(values.isfinite().all() for values in gates.mean_maxima())


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        (float("nan"), "epsilon of heads=nan: .* must be finite"),
        ({"heads": 1.0}, "epsilon is given for heads, and the gates are on heads, feed_forward"),
        ({"heads": 1.0, "feed_forward": -1.0}, "epsilon of feed_forward=-1.0"),
    ],
)
def test_thresholds_that_make_no_sense(epsilon: object, message: str) -> None:
    model = bert()
    before = footprint(model)
    with pytest.raises(PruningError, match=message):
        add_epsilon_gates(model, epsilon)
    assert footprint(model) == before


def test_gates_twice_and_masks_that_do_not_fit() -> None:
    model = bert()
    gates = add_epsilon_gates(model)
    with pytest.raises(PruningError, match="already has epsilon gates"):
        add_epsilon_gates(model)
    with pytest.raises(PruningError, match="Got 1 masks for 6 mappings"):
        gates.close([torch.ones(4, dtype=torch.bool)])
    with pytest.raises(
        PruningError, match=r"layer\.0\.attention\.heads: the mask must be a bool tensor of shape \(4,\)"
    ):
        gates.close([torch.ones(mapping.gates) for mapping in gates.mappings])
    with pytest.raises(PruningError, match="reduction='token'"):
        add_epsilon_gates(bert(), reduction="token")
