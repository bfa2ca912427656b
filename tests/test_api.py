"""`prune_model` from a dense model to a finished one: budgets, scores, recovery, targets, evaluation, retraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
)

from hf_prune import (
    FisherPruningConfig,
    HoldPruningConfig,
    MovementPruningConfig,
    PruningError,
    count_flops,
    describe_model,
    prune_model,
)
from hf_prune.budget import total_unit_parameters
from hf_prune.recovery import rearrange_mask
from hf_prune.scores import fisher_gradients, magnitude_scores
from tests.conformance.plans import difference, run
from tests.small_models import Batch, case, sizes

BERT = case("bert", "classification")


def config(**settings: Any) -> FisherPruningConfig:
    """Half the FLOPs, timed on a small batch, unless it is said otherwise."""
    budget = {} if {"params", "latency", "latency_ms"} & set(settings) else {"flops": 0.5}
    return FisherPruningConfig(**budget | {"latency_batch_size": 2} | settings)


class TestBudgets:
    @pytest.mark.parametrize("fraction", [1.0, 0.9, 0.5, 0.2, 0.05])
    def test_flops_are_never_above_the_budget(self, batches: list[Batch], fraction: float) -> None:
        model = BERT.model()
        dense = count_flops(model, 8)
        result = prune_model(model, config(flops=fraction), batches)
        assert result.report.sequence_length == 8
        assert (
            count_flops(model, 8)
            == result.report.pruned.flops
            <= fraction * dense
            == fraction * result.report.dense.flops
        )
        # The next unit would cost more than what is left: at most one head or one filter of slack.
        assert count_flops(model, 8) >= fraction * dense - 2 * describe_model(BERT.model()).blocks[0].macs_per_unit(8)

    def test_parameters(self, batches: list[Batch]) -> None:
        model = BERT.model()
        dense, everything = total_unit_parameters(describe_model(model)), model.num_parameters()
        result = prune_model(model, config(params=0.4), batches)
        kept = total_unit_parameters(describe_model(model))
        assert 0.3 * dense < kept <= 0.4 * dense
        assert model.num_parameters() == everything - dense + kept == result.report.pruned.parameters

    @pytest.mark.parametrize("settings", [{"latency": 0.7}, {"latency_ms": 1e6}])
    def test_latency(self, batches: list[Batch], settings: dict) -> None:
        # Wide enough for its FFN to take most of the time.
        model = BERT.model(intermediate_size=1024)
        result = prune_model(model, config(**settings, latency_batch_size=16, sequence_length=40), batches)
        setting = result.report.latency_setting
        assert (setting.batch_size, setting.sequence_length, setting.device) == (16, 40, "cpu")
        assert result.report.dense.latency > 0
        assert result.report.pruned.latency > 0
        assert sizes(model) == [block.kept_units for block in result.report.blocks]
        assert (result.report.pruned.flops < result.report.dense.flops) is ("latency" in settings)

    def test_uniform_layers(self, batches: list[Batch]) -> None:
        model = BERT.model()
        prune_model(model, config(uniform=True), batches)
        assert len({block.units for block in describe_model(model).attentions}) == 1
        assert len({block.units for block in describe_model(model).feed_forwards}) == 1
        assert sum(sizes(model)) < 3 * 44

    def test_round_widths(self, batches: list[Batch]) -> None:
        model = BERT.model()
        prune_model(model, config(round_to=16), batches)
        for block in describe_model(model).attentions:
            assert block.units * 8 % 16 == 0
        for block in describe_model(model).feed_forwards:
            assert block.units % 16 == 0 or block.units == 40

    def test_sequence_length_of_the_users_choice(self, batches: list[Batch]) -> None:
        result = prune_model(BERT.model(), config(sequence_length=32), batches)
        assert result.report.sequence_length == result.report.latency_setting.sequence_length == 32

    def test_targets_and_exclusions(self, batches: list[Batch]) -> None:
        model = BERT.model()
        chosen = config(flops=0.8, target_modules="intermediate", exclude_modules=["layer.1.intermediate"])
        prune_model(model, chosen, batches)
        found = sizes(model)
        assert found[0::2] == [4, 4, 4]
        assert found[3] == 40
        assert found[1] + found[5] < 80


class TestScoresAndRecovery:
    def test_units_with_the_highest_fisher_information_stay(self, batches: list[Batch]) -> None:
        gradients = fisher_gradients(BERT.model(), batches)
        result = prune_model(BERT.model(), config(rearrange=False, recovery="none", round_to=1), batches)
        scores = {
            block.key: rows.double().square().sum(0)
            for kind, blocks in (("attention", "heads"), ("feed_forward", "filters"))
            for block, rows in zip(
                [one for one in result.report.blocks if one.kind == kind], gradients[blocks], strict=True
            )
        }
        for kind in ("attention", "feed_forward"):
            blocks = [block for block in result.report.blocks if block.kind == kind]
            kept = torch.cat([scores[block.key][list(block.kept)] for block in blocks])
            gone = [
                scores[block.key][[unit for unit in range(block.dense_units) if unit not in block.kept]]
                for block in blocks
            ]
            # All units of a kind cost the same here, so the best of all layers together stay.
            assert kept.min() >= torch.cat(gone).max()

    def test_units_are_rearranged_within_their_block(self, batches: list[Batch]) -> None:
        plain = prune_model(BERT.model(), config(rearrange=False, recovery="none"), batches)
        rearranged = prune_model(BERT.model(), config(rearrange=True, recovery="none"), batches)
        gradients = fisher_gradients(BERT.model(), batches)
        blocks = describe_model(BERT.model())
        for block, rows in zip(blocks.feed_forwards, gradients["filters"], strict=True):
            mask = plain.plan.masks([block])[0]
            assert torch.equal(rearranged.plan.masks([block])[0], rearrange_mask(mask, rows))
        assert plain.plan != rearranged.plan
        assert [plain.plan.count(block) for block in blocks.blocks] == [
            rearranged.plan.count(block) for block in blocks.blocks
        ]

    def test_magnitude_needs_no_labels(self, batches: list[Batch]) -> None:
        unlabelled = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
        model = BERT.model()
        scores = magnitude_scores(model, describe_model(model).blocks)
        result = prune_model(model, config(importance="magnitude", rearrange=False), unlabelled)
        for block, score in zip(result.report.blocks, scores, strict=True):
            best = score.argsort(descending=True)[: block.kept_units]
            assert sorted(best.tolist()) == list(block.kept)

    def test_gradient_importance(self, batches: list[Batch]) -> None:
        gradients = fisher_gradients(BERT.model(), batches)
        result = prune_model(BERT.model(), config(importance="gradient", rearrange=False), batches)
        blocks = [block for block in result.report.blocks if block.kind == "feed_forward"]
        for block, rows in zip(blocks, gradients["filters"], strict=True):
            best = rows.abs().double().sum(0).argsort(descending=True)[: block.kept_units]
            assert sorted(best.tolist()) == list(block.kept)

    def test_repairs_come_closer_to_the_dense_model(self, batches: list[Batch]) -> None:
        dense = [run(BERT.model(), batch) for batch in batches]
        errors = {}
        for recovery in ("none", "mask_tuning", "weights"):
            model = BERT.model()
            result = prune_model(model, config(flops=0.8, rearrange=False, recovery=recovery), batches)
            errors[recovery] = sum(
                (before[0] - run(model, batch)[0]).square().sum().item()
                for before, batch in zip(dense, batches, strict=True)
            )
            assert result.config.recovery == recovery
        assert errors["weights"] < errors["none"]
        assert errors["mask_tuning"] != errors["none"]

    @pytest.mark.parametrize("solver", ["direct", "lsmr"])
    def test_solvers(self, batches: list[Batch], solver: str) -> None:
        model = BERT.model()
        result = prune_model(model, config(recovery="mask_tuning", solver=solver, refit_examples=8), batches)
        assert all(output.isfinite().all() for output in run(model, batches[0]))
        assert result.config.solver == solver

    def test_mask_tuning_that_stopped_is_noted(self, batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
        from hf_prune.recovery import repairs

        monkeypatch.setattr(repairs, "acceptable", lambda scales: False)
        result = prune_model(BERT.model(), config(recovery="mask_tuning"), batches)
        assert any("Mask tuning stopped at encoder.layer.0.attention" in note for note in result.report.notes)


class TestData:
    @pytest.mark.parametrize("kind", ["dataset", "loader", "list", "generator"])
    def test_kinds_of_calibration_data_agree(self, rows: Dataset, batches: list[Batch], kind: str) -> None:
        made = {
            "dataset": rows,
            "loader": DataLoader(rows.with_format("torch"), batch_size=4),
            "list": batches,
            "generator": iter(batches),
        }[kind]
        settings = {"batch_size": 4, "recovery": "none", "rearrange": False}
        expected = prune_model(BERT.model(), config(**settings), batches)
        assert prune_model(BERT.model(), config(**settings), made).plan == expected.plan

    def test_two_runs_give_identical_weights(self, rows: Dataset) -> None:
        for settings in ({}, {"recovery": "mask_tuning"}):
            one, other = BERT.model(), BERT.model()
            for model in (one, other):
                prune_model(model, config(batch_size=4, **settings), rows)
            assert sizes(one) == sizes(other)
            for name, value in one.state_dict().items():
                assert torch.equal(value, other.state_dict()[name]), name


class TestResult:
    def test_everything_that_is_known(self, batches: list[Batch]) -> None:
        model = BERT.model()
        chosen = config()
        result = prune_model(model, chosen, batches)
        assert result.model is model
        assert result.config is chosen
        assert {block.key: block.kept for block in result.report.blocks} == dict(result.plan.kept)
        assert list(result.report.stages)[:3] == ["gradients", "search", "repair"]
        assert result.report.strategy["flops"] == 0.5
        metadata = model.config.pruning
        assert metadata["strategy"] == json.loads(json.dumps(chosen.to_dict()))
        assert metadata["cost"]["pruned"]["flops"] == result.report.pruned.flops
        assert metadata["cost"]["dense"]["parameters"] == BERT.model().num_parameters()

    def test_modes_and_trainable_parameters_stay(self, batches: list[Batch]) -> None:
        model = BERT.model().train()
        model.bert.embeddings.requires_grad_(False)
        prune_model(model, config(), batches)
        assert all(module.training for module in model.modules())
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {name for name, _ in model.named_parameters() if "embeddings" in name}

    def test_pruned_twice(self, batches: list[Batch], tmp_path: Path) -> None:
        model = BERT.model()
        first = prune_model(model, config(flops=0.7), batches)
        second = prune_model(model, config(flops=0.6), batches)
        assert second.report.dense.flops == first.report.pruned.flops
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert difference(run(loaded, batches[0]), run(model, batches[0])) == 0
        key = "encoder.layer.2.attention"
        original = [first.plan.kept[key][unit] for unit in second.plan.kept[key]]
        assert loaded.config.pruning["blocks"][key] == {"kept": len(original), "of": 4, "heads": original}

    def test_saved_result_loads(self, batches: list[Batch], tmp_path: Path) -> None:
        result = prune_model(BERT.model(), config(), batches)
        result.save_pretrained(tmp_path / "small")
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
        assert difference(run(loaded, batches[0]), run(result.model, batches[0])) == 0
        assert FisherPruningConfig.from_pretrained(tmp_path / "small") == result.config
        names = {path.name for path in (tmp_path / "small").iterdir()}
        assert names >= {"README.md", "config.json", "model.safetensors", "pruning_report.json", "pruning_config.json"}
        assert not {path.suffix for path in (tmp_path / "small").iterdir()} & {".bin", ".pt", ".pkl"}


def test_what_works_only_in_training_is_refused() -> None:
    model = case("bert", "classification").model()
    with torch.no_grad():
        model.bert.pooler.dense.weight.zero_()
    with pytest.raises(PruningError, match="HoldPruningConfig works only while a model is trained: give it to Prun"):
        prune_model(model, HoldPruningConfig())
    assert not hasattr(model.config, "pruning")


@pytest.mark.parametrize("settings", [{}, {"recovery": "mask_tuning"}, {"importance": "blended"}, {"iterative": True}])
def test_the_callers_autocast_changes_nothing(settings: dict[str, Any], batches: list[Batch]) -> None:
    """Sums over the data and solves in half precision would, without saying so."""
    plain = prune_model(BERT.model(), config(**settings), batches)
    with torch.autocast("cpu", torch.bfloat16):
        inside = prune_model(BERT.model(), config(**settings), batches)
    assert inside.plan == plain.plan
    pairs = zip(plain.model.state_dict().values(), inside.model.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_the_callers_autocast_changes_nothing_of_single_weights(batches: list[Batch]) -> None:
    config = MovementPruningConfig(sparsity=0.5)
    plain = prune_model(BERT.model(), config, batches)
    with torch.autocast("cpu", torch.bfloat16):
        inside = prune_model(BERT.model(), config, batches)
    pairs = zip(plain.model.state_dict().values(), inside.model.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_model_that_needs_autocast_has_it(batches: list[Batch]) -> None:
    model = BERT.model().bfloat16()
    model.classifier.float()
    with torch.autocast("cpu", torch.bfloat16):
        result = prune_model(model, config(importance="magnitude"), batches)
    assert result.report.pruned.flops <= 0.5 * result.report.dense.flops
