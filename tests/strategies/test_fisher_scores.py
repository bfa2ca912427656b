"""What the Fisher strategy decides with the model's own labels, and where it counts on the refit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from hf_prune import FisherPruningConfig, PruningError, describe_model, prune_model
from hf_prune.calibration import CalibrationData
from hf_prune.recovery import contributed_energies, removal_curves
from hf_prune.report.clock import StageClock
from hf_prune.scores import fisher_gradients, iterate_gradients, iterate_model_gradients
from hf_prune.scores.output_information import OutputInformation
from hf_prune.strategies.base import Cut
from hf_prune.strategies.fisher import prune_by_fisher
from hf_prune.strategies.fisher.repair import repair_blocks
from hf_prune.strategies.fisher.strategy import NO_LABELS
from hf_prune.strategies.fisher.trials import best_by_trial
from hf_prune.strategies.fisher.unit_scores import BLENDS, GradientStatistics, score_candidates
from hf_prune.surgery import PruningPlan, apply_plan
from tests import mixtures
from tests.small_models import Batch, case

ITEM = case("bert", "classification")
FISHER = {"importance": "fisher", "round_to": 1}
AFTER_REFIT = {"importance": "after_refit", "round_to": 1}
PICTURES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
DECODER = {
    "image_size": 8, "patch_size": 2, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4, "decoder_intermediate_size": 32,
}  # fmt: skip
BLENDED = {"importance": "blended", "round_to": 1}


def scores_of(model, batches: list[Batch], config: FisherPruningConfig) -> dict[str, torch.Tensor]:
    anatomy, data = describe_model(model), CalibrationData(batches, model)
    statistics = GradientStatistics.collect(model, anatomy, data, config.labels)
    [scores] = score_candidates(model, anatomy, config, statistics, data)
    return scores


@pytest.mark.parametrize("labels", ["data", "model"])
def test_scores_after_the_refit_are_those_of_the_curves(batches: list[Batch], labels: str) -> None:
    model = ITEM.model()
    config = FisherPruningConfig(flops=0.5, labels=labels, refit_examples=8, **AFTER_REFIT)
    found = scores_of(model, batches, config)
    anatomy, data = describe_model(model), CalibrationData(batches, model)
    information = OutputInformation(model, anatomy)
    iterate = iterate_model_gradients if labels == "model" else iterate_gradients
    for _ in iterate(model, anatomy, batches, information):
        pass
    curves = removal_curves(model, anatomy, data, batches[:2], information.matrices)
    for block in anatomy.blocks:
        assert torch.allclose(found[block.key], curves[block.key].scores(), rtol=1e-6)
        assert found[block.key].sum() > 0


def test_fisher_scores_over_the_models_own_labels(batches: list[Batch]) -> None:
    model = ITEM.model()
    anatomy = describe_model(model)
    found = scores_of(model, batches, FisherPruningConfig(flops=0.5, labels="model", **FISHER))
    expected = [torch.zeros(block.units, dtype=torch.float64) for block in anatomy.blocks]
    for gradients in iterate_model_gradients(model, anatomy, batches):
        for total, rows in zip(expected, gradients, strict=True):
            total += rows.double().square().sum(0)
    assert all(torch.allclose(found[block.key], total) for block, total in zip(anatomy.blocks, expected, strict=True))
    with_data = scores_of(model, batches, FisherPruningConfig(flops=0.5, **FISHER))
    head_rows = fisher_gradients(model, batches)["heads"][0].double()
    first = anatomy.attentions[0].key
    assert torch.allclose(with_data[first], head_rows.square().sum(0))
    assert not torch.allclose(with_data[first], found[first], rtol=0.1)


@pytest.mark.parametrize("importance", ["fisher", "after_refit"])
def test_without_labels_in_the_data(rows: Dataset, importance: str) -> None:
    model = ITEM.model()
    config = FisherPruningConfig(flops=0.5, importance=importance, labels="model", round_to=1)
    result = prune_model(model, config, rows.remove_columns("labels"))
    assert 0.4 < result.report.pruned.flops / result.report.dense.flops <= 0.5
    with torch.no_grad():
        assert torch.isfinite(model(**ITEM.batch()).logits).all()


def test_a_copied_filter_goes_for_nothing(batches: list[Batch]) -> None:
    """The refit gives a twin's share to the other: one of them goes before all others, but not both."""
    model = ITEM.model()
    feed_forward = model.bert.encoder.layer[1]
    with torch.no_grad():
        for parameter in (feed_forward.intermediate.dense.weight, feed_forward.intermediate.dense.bias):
            parameter[7] = parameter[3]
    config = FisherPruningConfig(flops=0.97, target_modules=["layer.1.intermediate"], **AFTER_REFIT)
    anatomy, data = describe_model(model), CalibrationData(batches, model)
    block = anatomy.feed_forwards[1]
    cut = prune_by_fisher(model, anatomy, config, data, StageClock())
    gone = set(range(block.units)) - set(cut.plan.units(block))
    assert len(gone & {3, 7}) == 1


def test_experts_keep_their_fisher_scores() -> None:
    model, data = mixtures.mixture("mixtral"), [mixtures.batch(seed) for seed in range(3)]
    found = scores_of(model, data, FisherPruningConfig(flops=0.8, **AFTER_REFIT))
    plain = scores_of(model, data, FisherPruningConfig(flops=0.8, **FISHER))
    for block in describe_model(model).blocks:
        same = torch.equal(found[block.key], plain[block.key])
        assert same == (block.output.expert is not None)


class TestBlend:
    def test_ends_are_the_two_parts(self, batches: list[Batch]) -> None:
        model = ITEM.model()
        fisher = scores_of(model, batches, FisherPruningConfig(flops=0.5, **FISHER))
        ends = [scores_of(model, batches, FisherPruningConfig(flops=0.5, **BLENDED, blend=share)) for share in (0, 1)]
        total = sum(float(scores.sum()) for scores in fisher.values())
        assert all(torch.allclose(ends[0][key], scores / total) for key, scores in fisher.items())
        anatomy, data = describe_model(model), CalibrationData(batches, model)
        energies = contributed_energies(model, anatomy, data, batches)
        total = sum(float(scores.sum()) for scores in energies.values())
        assert all(torch.allclose(ends[1][key], scores / total) for key, scores in energies.items())

    def test_the_best_of_several_is_found_by_trial(self, batches: list[Batch]) -> None:
        """The cut that is taken is the one whose predictions, once repaired, are the closest on other data."""
        model = ITEM.model()
        anatomy, data = describe_model(model), CalibrationData(batches, model)
        config = FisherPruningConfig(flops=0.4, round_to=1)
        generator = torch.Generator().manual_seed(0)
        cuts = []
        for _ in range(4):
            masks = [torch.rand(block.units, generator=generator) < 0.6 for block in anatomy.blocks]
            cuts.append(Cut(PruningPlan.from_masks(anatomy.blocks, masks), 8))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found = best_by_trial(model, anatomy, config, data, cuts)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        with torch.no_grad():
            dense = [model(**batch).logits.log_softmax(-1) for batch in batches[1::2]]
        distances = []
        for cut in cuts:
            repairs = repair_blocks(model, anatomy, config, data, cut.plan, [], batches[::2])
            log = apply_plan(model, anatomy, cut.plan, repairs)
            with torch.no_grad():
                pruned = [model(**batch).logits.log_softmax(-1) for batch in batches[1::2]]
            log.roll_back()
            pairs = zip(dense, pruned, strict=True)
            distances.append(sum(float((one.exp() * (one - other)).sum()) for one, other in pairs))
        assert max(distances) > 1.1 * min(distances)
        assert found is cuts[distances.index(min(distances))]

    def test_without_a_share_one_of_the_grid_is_taken(self, rows: Dataset) -> None:
        plans = []
        for share in (None, *BLENDS):
            config = FisherPruningConfig(flops=0.4, **BLENDED, blend=share, batch_size=4, labels="model")
            plans.append(prune_model(ITEM.model(), config, rows.remove_columns("labels")).plan)
        assert plans[0] in plans[1:]
        assert any(plan != plans[1] for plan in plans[2:])

    def test_trials_need_data_that_the_repair_has_not_seen(self, batches: list[Batch]) -> None:
        with pytest.raises(PruningError, match="at least two batches"):
            prune_model(ITEM.model(), FisherPruningConfig(flops=0.4, **BLENDED), batches[:1])

    def test_experts_are_refused(self) -> None:
        config = FisherPruningConfig(flops=0.8, **BLENDED)
        with pytest.raises(PruningError, match="not measured for experts"):
            prune_model(mixtures.mixture("mixtral"), config, [mixtures.batch()])

    @pytest.mark.parametrize("blend", [-0.1, 1.5, "half", True])
    def test_share_out_of_range(self, blend: object) -> None:
        with pytest.raises(PruningError, match=r"must lie in \[0, 1\]"):
            FisherPruningConfig(flops=0.5, importance="blended", blend=blend)

    def test_share_of_nothing(self) -> None:
        with pytest.raises(PruningError, match="needs importance='blended'"):
            FisherPruningConfig(flops=0.5, blend=0.5)


class TestWhoseLabels:
    def unlabelled(self, batches: list[Batch]) -> list[Batch]:
        return [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]

    @pytest.mark.parametrize(
        "settings",
        [
            AFTER_REFIT,
            FISHER,
            {"recovery": "mask_tuning"},
            {"iterative": True},
            {"importance": "magnitude", "recovery": "mask_tuning"},
        ],
    )
    def test_by_default_those_in_the_data_if_it_has_any(
        self, batches: list[Batch], settings: dict[str, object]
    ) -> None:
        found = {}
        for labels in (None, "data", "model"):
            for given, data in (("labelled", batches), ("unlabelled", self.unlabelled(batches))):
                if (labels, given) != ("data", "unlabelled"):
                    config = FisherPruningConfig(flops=0.5, labels=labels, **settings)
                    found[labels, given] = prune_model(ITEM.model(), config, data)
        noted = {key for key, result in found.items() if NO_LABELS in result.report.notes}
        assert noted == {(None, "unlabelled")}
        for labels, given in (("data", "labelled"), ("model", "unlabelled")):
            own, other = found[None, given].model.state_dict(), found[labels, given].model.state_dict()
            assert own.keys() == other.keys()
            assert all(torch.equal(own[name], other[name]) for name in own)
        assert found["data", "labelled"].plan != found["model", "labelled"].plan

    def test_the_first_order_gradient_needs_those_in_the_data(self, batches: list[Batch]) -> None:
        config = FisherPruningConfig(flops=0.5, importance="gradient")
        with pytest.raises(PruningError, match="labels are missing"):
            prune_model(ITEM.model(), config, self.unlabelled(batches))

    def test_a_model_without_predictions(self) -> None:
        bare = case("bert", "bare")
        with pytest.raises(PruningError, match="Use a model with its task head"):
            prune_model(bare.model(), FisherPruningConfig(flops=0.5), [bare.batch()])

    def test_losses_that_need_no_column_of_labels(self) -> None:
        """A masked autoencoder hides parts of the pictures itself."""
        torch.manual_seed(0)
        model = ViTMAEForPreTraining(ViTMAEConfig(**PICTURES, **DECODER))
        data = [{"pixel_values": torch.randn(1, 3, 8, 8)} for _ in range(4)]
        result = prune_model(model, FisherPruningConfig(flops=0.5, round_to=1), data)
        assert NO_LABELS not in result.report.notes

    def test_what_stands_in_is_said(self, batches: list[Batch], caplog: pytest.LogCaptureFixture) -> None:
        prune_model(ITEM.model(), FisherPruningConfig(flops=0.5), self.unlabelled(batches))
        said = [record.message for record in caplog.records if "has no labels" in record.message]
        assert len(said) == 1
        assert "input_ids" in said[0]


class TestSettings:
    @pytest.mark.parametrize("settings", [{"labels": "mine"}, {"importance": "later"}])
    def test_unknown_words(self, settings: dict[str, str]) -> None:
        with pytest.raises(PruningError, match=next(iter(settings))):
            FisherPruningConfig(flops=0.5, **settings)

    @pytest.mark.parametrize(
        ("settings", "scores"),
        [
            ({}, "after_refit"),
            ({"recovery": "mask_tuning"}, "fisher"),
            ({"recovery": "none"}, "fisher"),
            ({"rearrange": True}, "fisher"),
            ({"importance": "magnitude"}, "magnitude"),
        ],
    )
    def test_scores_count_on_the_refit_where_there_is_one(self, settings: dict[str, Any], scores: str) -> None:
        assert FisherPruningConfig(flops=0.5, **settings).scores == scores

    @pytest.mark.parametrize("importance", ["gradient", "magnitude"])
    def test_scores_that_are_no_expectation_of_squares(self, importance: str) -> None:
        with pytest.raises(PruningError, match="labels='model' says nothing"):
            FisherPruningConfig(flops=0.5, importance=importance, labels="model")

    @pytest.mark.parametrize("settings", [{"recovery": "none"}, {"recovery": "mask_tuning"}, {"rearrange": True}])
    def test_counting_on_a_refit_that_does_not_come(self, settings: dict[str, object]) -> None:
        with pytest.raises(PruningError, match="counts on the refit"):
            FisherPruningConfig(flops=0.5, importance="after_refit", **settings)
