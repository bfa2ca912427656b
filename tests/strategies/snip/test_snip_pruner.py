"""What goes in which phase, and what it leaves behind, in loops without a `Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hf_prune import PruningError, SnipPruningConfig, describe_model, start_pruning
from hf_prune.report import TradeOffCurve
from hf_prune.strategies.snip import SnipPruner
from tests.gates.test_unit_gates import footprint
from tests.strategies.snip.runs import STEPS, config, counts, level_folder, logits_of, run_steps
from tests.training.runs import BERT, assert_same, bert, is_clean, weights

FULL = {f"{layer}{kind}": size for layer in range(3) for kind, size in (("h", 4), ("f", 40))}


def start(
    settings: SnipPruningConfig, rate: float = 1e-3, steps: int = STEPS, model: PreTrainedModel | None = None
) -> tuple[SnipPruner, PreTrainedModel, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = model or bert(0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    pruner = start_pruning(model, settings, steps, optimizer)
    assert isinstance(pruner, SnipPruner)
    return pruner, model, optimizer


def gone(pruner: SnipPruner) -> dict[str, int]:
    """How many units of which blocks are off."""
    return {name: FULL[name] - left for name, left in counts(pruner).items() if left < FULL[name]}


def test_planted_useless_mappings_go_first() -> None:
    """A head of the second layer and the first layer's FFN add next to nothing."""
    model = bert()
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.output.dense.weight[:, 16:24] *= 1e-3
        for parameter in model.bert.encoder.layer[0].output.dense.parameters():
            parameter *= 1e-3
    pruner, model, optimizer = start(config(params=0.3), 1e-5, 36, model)
    run_steps(pruner, model, optimizer, range(36))
    assert [counts(level) for level in pruner.curve.levels[:2]] == [FULL, FULL | {"1h": 3, "0f": 0}]
    assert pruner.curve[1].kept["encoder.layer.1.attention"] == (0, 1, 3)
    assert set(gone(pruner)) > {"1h", "0f"}
    pruner.abandon()


class TestUnits:
    @pytest.mark.parametrize("units", ["heads", "attention", "feed_forward", "sublayers", "layers"])
    def test_what_goes(self, units: str) -> None:
        pruner, model, optimizer = start(config(params=0.87, units=units))
        run_steps(pruner, model, optimizer, range(STEPS))
        found = gone(pruner)
        assert found
        assert all(name.endswith("h") or units not in ("heads", "attention") for name in found)
        assert all(name.endswith("f") or units != "feed_forward" for name in found)
        if units != "heads":
            assert all(found[name] == FULL[name] for name in found)
        if units == "layers":
            heads, filters = ({name[0] for name in found if name[1] == kind} for kind in "hf")
            assert heads == filters
        assert pruner.reached
        expected = logits_of(model, BERT.batch())
        result = pruner.finish()
        assert torch.allclose(logits_of(model, BERT.batch()), expected, atol=1e-4)
        assert {row.key: row.kept for row in result.report.blocks} == dict(result.curve[-1].kept)
        assert is_clean(model)

    def test_an_attention_that_is_gone_keeps_its_bias_and_an_ffn_does_not(self) -> None:
        """Post-LN: what is left of the sublayer is norm(x + bias), of an FFN norm(x)."""
        pruner, model, optimizer = start(config(params=0.2, units="sublayers", most=1.0, theta=1.0, k=2), steps=STEPS)
        run_steps(pruner, model, optimizer, range(STEPS))
        biases = weights(model)
        layers = describe_model(model).layers
        pruner.finish()
        left = {row.key: row.kept_units for row in pruner.rows}
        emptied = {key.split(".")[-1] for key, count in left.items() if not count}
        assert emptied == {"attention", "intermediate"}
        for path, layer in zip(layers, model.bert.encoder.layer, strict=True):
            hidden = torch.randn(2, 5, 32)
            name = path.removeprefix("bert.")
            if not left[f"{name}.attention"]:
                bias = biases[f"{path}.attention.output.dense.bias"]
                assert bias.any()
                expected = layer.attention.output.LayerNorm(hidden + bias)
                assert torch.equal(layer.eval().attention(hidden)[0], expected)
            if not left[f"{name}.intermediate"]:
                assert not biases[f"{path}.output.dense.bias"].any()
                expected = layer.output.LayerNorm(hidden)
                assert torch.equal(layer.eval().output(layer.intermediate(hidden), hidden), expected)


def test_what_is_gone_costs_nothing_while_training_goes_on() -> None:
    pruner, model, optimizer = start(config(params=0.4, units="sublayers", most=1.0, k=2), steps=STEPS)
    run_steps(pruner, model, optimizer, range(STEPS))
    assert {name[1] for name in gone(pruner)} == {"h", "f"}
    masked = bert()
    masked.load_state_dict(model.state_dict())
    for item in (model, masked):
        item.requires_grad_(False)  # the counter stumbles over leaves

    def flops(of: PreTrainedModel) -> tuple[int, torch.Tensor]:
        with FlopCounterMode(display=False) as counter:
            logits = logits_of(of, BERT.batch())
        return counter.get_total_flops(), logits

    running, logits = flops(model)
    dense, expected = flops(masked)
    assert torch.allclose(logits, expected, atol=1e-5)
    pruner.finish()
    assert dense > running == flops(model)[0]


def test_gates_act_in_training_in_their_phase_only() -> None:
    """Weights stay as they are, and ε is so large that most is closed."""
    pruner, model, optimizer = start(config(k=12, k_feed_forward=3, most=0.01, l1=0.0), 0.0, model=bert())
    differing = set()
    for step in range(STEPS):
        with torch.no_grad():
            training = model.train()(**BERT.batch(step)).logits
        place = pruner.iterations.place(step)
        if not torch.allclose(training, logits_of(model, BERT.batch(step)), atol=1e-5):
            differing.add(place.phase)
        run_steps(pruner, model, optimizer, range(step, step + 1))
    assert differing == {"gated"}
    pruner.abandon()


def test_nothing_happens_once_the_goal_is_reached() -> None:
    pruner, model, optimizer = start(config(params=0.99, iterations=3), steps=16)
    run_steps(pruner, model, optimizer, range(10))
    reached = counts(pruner)
    assert pruner.reached
    run_steps(pruner, model, optimizer, range(10, 16))
    assert counts(pruner) == reached
    assert "epsilon_heads" not in pruner.logs()
    assert [level.step for level in pruner.curve.levels] == [4, 16]


class TestLoopsWithoutATrainer:
    def test_levels_are_written_where_the_loop_says(self, tmp_path: Path) -> None:
        pruner, model, optimizer = start(config(max_metric_drop=0.05))
        pruner.folder, scores = tmp_path, iter([0.9, 0.88, 0.5])
        for step in range(STEPS):
            run_steps(pruner, model, optimizer, range(step, step + 1), record=False)
            if pruner.level_due:
                pruner.record_level({"accuracy": next(scores), "confusion": [[1, 2], [3, 4]]})
                assert not pruner.level_due
        result = pruner.finish()
        assert result.curve == TradeOffCurve.load(tmp_path)
        assert [dict(level.metrics) for level in result.curve.levels] == [{"accuracy": s} for s in (0.9, 0.88, 0.5)]
        assert_same(weights(model), weights(type(model).from_pretrained(level_folder(tmp_path, 1))))
        assert not optimizer._optimizer_step_post_hooks
        assert not optimizer._optimizer_step_pre_hooks

    def test_recording_does_not_change_the_training(self, tmp_path: Path) -> None:
        models = []
        for folder in (None, tmp_path):
            torch.manual_seed(0)
            pruner, model, optimizer = start(config())
            pruner.folder = folder
            run_steps(pruner, model, optimizer, range(STEPS), record=folder is not None)
            pruner.finish()
            models.append(weights(model))
        assert_same(*models)

    def test_a_metric_can_decide_only_among_written_levels(self) -> None:
        pruner, model, optimizer = start(config(max_metric_drop=0.05))
        run_steps(pruner, model, optimizer, range(4), record=False)
        assert pruner.level_due
        with pytest.raises(PruningError, match=r"max_metric_drop=0\.05 takes the weights .* set the pruner's folder"):
            pruner.record_level({"accuracy": 0.9})
        pruner.abandon()

    def test_a_level_that_has_gone_is_missed_before_anything_is_cut(self, tmp_path: Path) -> None:
        pruner, model, optimizer = start(config(max_metric_drop=0.05))
        pruner.folder, scores = tmp_path, iter([0.9, 0.5, 0.5])
        for step in range(STEPS):
            run_steps(pruner, model, optimizer, range(step, step + 1), record=False)
            if pruner.level_due:
                pruner.record_level({"accuracy": next(scores)})
        level_folder(tmp_path, 0).rename(tmp_path / "elsewhere")
        before = weights(model)
        with pytest.raises(PruningError, match=r"model of step 4, whose weights are not in .*level-00"):
            pruner.finish()
        assert_same(weights(model), before)
        (tmp_path / "elsewhere").rename(level_folder(tmp_path, 0))
        assert pruner.finish().model.num_parameters() == bert().num_parameters()

    @pytest.mark.parametrize("spectral_norm", [None, 0.5])
    def test_given_up_it_leaves_the_model_as_it_was(self, spectral_norm: float | None) -> None:
        model = bert()
        before, found = weights(model), footprint(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        settings = config(units="sublayers", spectral_norm=spectral_norm, layer_rate_decay=0.5)
        pruner: Any = start_pruning(model, settings, STEPS, optimizer)
        run_steps(pruner, model, optimizer, range(9))
        assert gone(pruner)
        pruner.abandon()
        assert_same(weights(model), before)
        assert footprint(model) == found
        assert is_clean(model)
