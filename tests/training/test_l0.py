"""L0 regularisation against its definition, in training loops and in a Trainer."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hf_prune import (
    AutoPruningConfig,
    InfeasibleBudgetError,
    L0PruningConfig,
    PruningCallback,
    PruningError,
    RandomPruningConfig,
    count_flops,
    describe_model,
    prune_model,
    start_pruning,
)
from hf_prune.anatomy import linear_at
from hf_prune.gates import hard_concrete
from hf_prune.strategies.l0 import L0Pruner
from tests.family_models import main_head
from tests.mixtures import batch as mixture_batch
from tests.mixtures import mixture
from tests.scores.one_at_a_time import scaled
from tests.training.runs import BERT, STEPS, assert_close, assert_same, bert, is_clean, train, trainer_of, weights

RATE, GATE_RATE = 0.01, 0.8


def started(model: PreTrainedModel, steps: int, **settings: Any) -> tuple[L0Pruner, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    widths = {} if "heads" in settings else {"round_to": 1}
    config = L0PruningConfig(**{"gate_learning_rate": GATE_RATE} | widths | settings)
    pruner = start_pruning(model.train(), config, steps, optimizer)
    assert isinstance(pruner, L0Pruner)
    return pruner, optimizer


def step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    model(**BERT.batch(seed=seed)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def share(model: PreTrainedModel) -> float:
    return count_flops(model, 48) / count_flops(bert(), 48)


def test_definition() -> None:
    """Gates drawn in every pass, one loss for weights and gates, the Lagrangian's multipliers climbing it."""
    model, twin = bert().double(), bert().double()
    pruner, optimizer = started(model, 8, flops=0.5, end=6, target_warmup=0.5)
    blocks = describe_model(twin).blocks
    costs = [row.flops(1) for row in pruner.rows]
    total = sum(block.units * cost for block, cost in zip(blocks, costs, strict=True))
    alphas = [torch.full((block.units,), 2.5, requires_grad=True) for block in blocks]
    multipliers = torch.zeros(2, requires_grad=True)
    descent = torch.optim.SGD(twin.parameters(), lr=RATE)
    learning = torch.optim.Adam(alphas, lr=GATE_RATE)
    climbing = torch.optim.Adam([multipliers], lr=GATE_RATE, maximize=True)
    for number in range(1, 6):
        step(model, optimizer, number)

        torch.manual_seed(number)
        for _ in range(2):  # the base model's draw takes the place of its head's
            gates = [hard_concrete(alpha, torch.rand_like(alpha)) for alpha in alphas]
        with scaled(twin, gates, blocks):
            loss = twin(**BERT.batch(seed=number)).loss
        opened = [torch.sigmoid(alpha - 2 / 3 * math.log(0.1 / 1.1)).sum() for alpha in alphas]
        cost = sum(one * cost for one, cost in zip(opened, costs, strict=True)) / total
        excess = cost - max(0.5, 1 - 0.5 * number / 3)
        (loss + multipliers[0] * excess + multipliers[1] * excess**2).backward()
        for one in (descent, learning, climbing):
            one.step()
            one.zero_grad()
        with torch.no_grad():
            for alpha in alphas:
                alpha.clamp_(-math.log(100), math.log(100))
        assert not pruner.reached
        for found, expected in zip(pruner.gates.log_alphas, alphas, strict=True):
            assert torch.allclose(found, expected, atol=5e-3), number
        assert_close(dict(model.named_parameters()), dict(twin.named_parameters()), 1e-3)
    assert pruner.gates.cost() == pytest.approx(float(cost.detach()), abs=0.2)
    learnt = torch.cat([alpha.detach() for alpha in alphas])
    assert learnt.min() < 0 < learnt.max()


def test_evaluation_and_state_dict_do_without_noise() -> None:
    model = bert()
    pruner, optimizer = started(model, 20, flops=0.5, end=0.9)
    for seed in range(12):
        step(model, optimizer, seed)
    closed = [pruner.gates.settled(index) for index in range(6)]
    assert {0.0, 1.0} < {float(value) for gates in closed for value in gates}
    ordinary = bert()
    ordinary.load_state_dict(model.state_dict())
    batch = BERT.batch()
    with torch.no_grad():
        evaluated = model.eval()(**batch).logits
        assert torch.allclose(evaluated, ordinary(**batch).logits, atol=1e-5)
        torch.manual_seed(0)
        first, second = (model.train()(**batch).logits for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-3)
    block = describe_model(model).blocks[0]
    projection = f"{block.layer}.{block.output.path}.weight"
    expected = model.get_parameter(projection) * block.spread(closed[0])
    assert torch.equal(model.state_dict()[projection], expected.detach())


def test_the_choice_is_exact_and_what_is_left_of_gates_becomes_weights() -> None:
    model = bert()
    pruner, optimizer = started(model, 20, flops=0.5, end=12)
    for seed in range(11):
        step(model, optimizer, seed)
    optimizer.param_groups[0]["lr"] = 0.0  # what the last step does to the weights is the choice alone
    raw = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step(model, optimizer, 11)
    assert pruner.reached
    for index, (block, kept) in enumerate(zip(describe_model(model).blocks, pruner.units, strict=True)):
        alpha, name = pruner.gates.log_alphas[index].detach(), f"{block.layer}.{block.output.path}.weight"
        assert kept.all() or not kept.any() or alpha[kept].min() >= alpha[~kept].max()
        columns = block.spread(pruner.gates.settled(index) * kept)
        assert torch.equal(model.get_parameter(name).detach(), raw[name] * columns)
    assert 0 < sum(int(kept.sum()) for kept in pruner.units) < 3 * 44
    assert 0.45 < pruner.logs()["flops"] <= 0.5
    optimizer.param_groups[0]["lr"] = RATE
    model.train()
    assert torch.equal(*(model(**BERT.batch()).logits for _ in range(2)))
    before = weights(model)
    step(model, optimizer, 12)
    after = weights(model)
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    result = pruner.finish()
    assert result.report.pruned.flops <= 0.5 * result.report.dense.flops
    assert is_clean(model)


def test_a_penalty_closes_what_the_budget_takes() -> None:
    """After a few dozen steps the gates themselves have come near the budget, and the choice changes little."""
    model = bert()
    pruner, optimizer = started(model, 60, flops=0.5, end=1.0, gate_learning_rate=0.3)
    for seed in range(59):
        step(model, optimizer, seed % 4)
    logs = pruner.logs()
    assert logs["target_cost"] == 0.5
    assert logs["expected_cost"] == pytest.approx(0.5, abs=0.15)
    assert logs["flops"] == pytest.approx(0.5, abs=0.15)


def test_only_heads_have_gates_under_a_budget_of_heads() -> None:
    model = bert()
    pruner, optimizer = started(model, 12, heads=0.5, end=0.9)
    for seed in range(12):
        step(model, optimizer, seed)
    pruner.finish()
    anatomy = describe_model(model)
    assert sum(block.units for block in anatomy.attentions) == 6
    assert min(block.units for block in anatomy.attentions) >= 1
    assert [block.units for block in anatomy.feed_forwards] == [40] * 3


def test_blocks_that_may_not_be_pruned_have_no_gates() -> None:
    model = bert()
    pruner, optimizer = started(
        model, 8, params=0.8, end=0.8, exclude_modules=["layer.1.attention", "layer.2.intermediate"]
    )
    for seed in range(8):
        step(model, optimizer, seed)
    result = pruner.finish()
    anatomy = describe_model(model)
    assert anatomy["encoder.layer.1.attention"].units == 4
    assert anatomy["encoder.layer.2.intermediate"].units == 40
    assert result.report.pruned.unit_parameters <= 0.8 * result.report.dense.unit_parameters


def test_before_it_begins_nothing_happens() -> None:
    model, twin = bert(), bert()
    pruner, optimizer = started(model, 12, flops=0.5, begin=4, end=8)
    plain = torch.optim.SGD(twin.parameters(), lr=RATE)
    for seed in range(4):
        step(model, optimizer, seed)
        step(twin.train(), plain, seed)
    assert_same(weights(model), weights(twin))
    assert pruner.logs()["expected_cost"] > 0.98
    step(model, optimizer, 4)
    step(twin, plain, 4)
    assert not torch.equal(model.classifier.weight, twin.classifier.weight)


def test_in_a_trainer(tmp_path: Path) -> None:
    model = bert(0.1)
    config = L0PruningConfig(flops=0.5, round_to=1, end=0.7, gate_learning_rate=1.0)
    callback = PruningCallback(config)
    trainer = trainer_of(model, tmp_path, callback, max_steps=2 * STEPS)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "expected_cost" in row]
    assert len(logged) == 7
    assert logged[-1]["target_cost"] == 0.5
    assert callback.result.report.pruned.flops <= 0.5 * callback.result.report.dense.flops
    callback.result.save_pretrained(tmp_path / "small")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**BERT.batch()).logits, model.eval()(**BERT.batch()).logits)
    assert AutoPruningConfig.from_pretrained(tmp_path / "small") == config
    assert is_clean(model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_draws_the_same_gates(reentrant: bool) -> None:
    models = [bert(), bert()]
    models[1].activation_checkpointing_enable({"use_reentrant": reentrant})
    pruners = []
    for model in models:
        pruner, optimizer = started(model, 10, flops=0.5, end=0.9)
        for seed in range(5):
            step(model, optimizer, seed)
        pruners.append(pruner)
    for one, other in zip(*(pruner.gates.log_alphas for pruner in pruners), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert_close(weights(models[0]), weights(models[1]))


def test_a_training_that_ends_early_is_cut_all_the_same(tmp_path: Path) -> None:
    model = bert()
    callback = train(model, tmp_path, L0PruningConfig(flops=0.5, round_to=1, end=50))
    assert callback.result.report.pruned.flops <= 0.5 * callback.result.report.dense.flops


@pytest.mark.parametrize("seen", [2, 6])
def test_abandoned(seen: int) -> None:
    model = bert()
    before = copy.deepcopy(model.state_dict())
    pruner, optimizer = started(model, 8, flops=0.5, end=4)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for seed in range(seen):
        step(model, optimizer, seed)
    pruner.abandon()
    assert is_clean(model)
    assert not any(module._state_dict_hooks or module._forward_pre_hooks for module in model.modules())
    if seen == 2:
        assert_same(weights(model), before)


def test_experts() -> None:
    """Filters of experts go in step; the weights of all experts are one parameter."""
    model, batch = mixture("mixtral"), mixture_batch()
    pruner, optimizer = started(model, 6, params=0.6, end=0.9)
    for _ in range(5):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert pruner.reached
    assert len(pruner.gates.log_alphas[1].detach().unique()) > 1
    result = pruner.finish()
    assert result.report.pruned.unit_parameters <= 0.6 * result.report.dense.unit_parameters


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs exactly one budget out of flops, params, latency, latency_ms, heads; got none"),
        ({"flops": 0.5, "heads": 0.5}, "needs exactly one budget"),
        ({"heads": 1.5}, r"heads=1\.5 must lie in \(0, 1\]"),
        ({"flops": 0.5, "allow_empty_layers": True}, "use it with heads="),
        ({"flops": 0.5, "gate_temperature": 0}, "gate_temperature=0 must be above 0"),
        ({"flops": 0.5, "gate_learning_rate": -1}, "gate_learning_rate=-1 must be a number of at least 0"),
        ({"flops": 0.5, "target_warmup": 1.5}, r"target_warmup=1\.5 must lie in \[0, 1\]"),
        ({"flops": 0.5, "regularization": "much"}, "regularization='much' must be a number of at least 0, or None"),
        ({"flops": 0.5, "begin": 0.6}, r"begin=0\.6 must not be above end=0\.5"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        L0PruningConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"latency": 0.5}, PruningError, r"latency=0\.5 is measured on a model at rest"),
        ({"flops": 0.5, "begin": 0.5}, PruningError, "leave no steps of 6 in which gates could learn"),
        ({"params": 0.01, "target_modules": ["attention"]}, InfeasibleBudgetError, r"params=0\.01 is out of reach"),
        ({"heads": 0.5, "exclude_modules": ["attention"]}, PruningError, "heads= has no heads to choose from"),
    ],
)
def test_what_does_not_fit_the_model(settings: dict[str, Any], error: type, message: str) -> None:
    model = bert()
    before = weights(model)
    with pytest.raises(error, match=message):
        start_pruning(model, L0PruningConfig(**settings), 6)
    assert_same(weights(model), before)
    assert is_clean(model)


def test_a_side_file_of_another_model() -> None:
    pruner, _ = started(bert(), 6, flops=0.5)
    state = pruner.state()
    for name in ("encoder.layer.0.attention.whole", "bert.encoder.layer.0.output.dense.weight.raw"):
        for changed in ({key: value for key, value in state.items() if key != name}, state | {name: torch.zeros(7)}):
            with pytest.raises(PruningError, match=r"the stored (mask does|gates do|weights do) not fit"):
                pruner.load_state(changed, 3)


def test_it_only_works_in_training_and_random_heads_only_without() -> None:
    with pytest.raises(PruningError, match="works only while a model is trained: give it to PruningCallback"):
        prune_model(bert(), L0PruningConfig(flops=0.5))
    for settings in ({"heads": 0.5}, {"layers": 2}):
        with pytest.raises(PruningError, match="is pruned at random at one go: use prune_model"):
            start_pruning(bert(), RandomPruningConfig(**settings), 6)


def test_a_layer_that_runs_several_times_has_the_same_gates_each_time() -> None:
    model = main_head("albert").model()
    pruner, _ = started(model, 20, flops=0.5, end=0.9)
    pruner._learning = True
    seen: dict[str, list[torch.Tensor]] = {}
    for block in describe_model(model).blocks:
        projection = linear_at(model.get_submodule(block.layer), block.output)
        # Runs after the gates, which were put on before.
        projection.register_forward_pre_hook(
            lambda module, args, key=block.key: seen.setdefault(key, []).append((args[0] == 0).all(dim=(0, 1)))
        )
    with torch.no_grad():
        for alpha in pruner.gates.log_alphas:
            alpha.fill_(-1.0)
    ids = torch.randint(5, 60, (2, 8))
    for _ in range(2):
        model(input_ids=ids)
    for closed in seen.values():
        runs = len(closed) // 2
        assert runs > 1
        assert all(torch.equal(one, closed[0]) for one in closed[:runs])
        assert all(torch.equal(one, closed[runs]) for one in closed[runs:])
    assert any(not torch.equal(closed[0], closed[-1]) for closed in seen.values())
    pruner.abandon()
