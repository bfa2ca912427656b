"""BERT-like models with every task head, thoroughly: gates, cuts, checkpoints, training, pruning again.

Every other model type in the table goes through the same steps, once per head, in `test_every_head.py` and
`test_every_type.py`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from hf_prune import FisherPruningConfig, PruningError, describe_model, prune_model
from hf_prune.anatomy import supported_model_types
from hf_prune.gates import UnitGates
from hf_prune.scores import iterate_gradients
from hf_prune.surgery import apply_plan, shrink_model
from tests.conformance.plans import (
    TOLERANCE,
    VISIBLE,
    assert_counted_in_dense_model,
    assert_gates_mask,
    difference,
    prune,
    run,
    varied_plan,
)
from tests.conformance.training import train_one_step
from tests.conformance.wrong_cuts import cut_in_reverse, cut_others
from tests.small_models import CASES, FILTERS, HEADS, LAYERS, Case


def test_cases_are_of_known_families() -> None:
    assert {case.model_type for case in CASES} <= set(supported_model_types())


@pytest.mark.parametrize("model_type", sorted({case.model_type for case in CASES}))
def test_every_task_head_that_transformers_has_is_covered(model_type: str) -> None:
    module = getattr(transformers.models, model_type.replace("-", "_"))
    exported = {name: getattr(module, name) for name in dir(module) if name.endswith("Model") or "For" in name}
    heads = {
        name
        for name, item in exported.items()
        if isinstance(item, type) and issubclass(item, PreTrainedModel) and not name.endswith("PreTrainedModel")
    }
    assert heads == {case.model_class.__name__ for case in CASES if case.model_type == model_type}


@pytest.mark.parametrize("case", CASES, ids=str)
class TestConformance:
    def test_anatomy_names_every_sublayer_of_every_layer(self, case: Case) -> None:
        anatomy = describe_model(case.model())
        attentions_per_layer = 2 if case.task == "cross_attention" else 1
        assert len(anatomy.layers) == LAYERS
        assert [block.units for block in anatomy.attentions] == [HEADS] * attentions_per_layer * LAYERS
        assert [block.units for block in anatomy.feed_forwards] == [FILTERS] * LAYERS
        assert len({block.key for block in anatomy.blocks}) == len(anatomy.blocks)

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_masked_model_equals_shrunk_model(self, case: Case, attention: str) -> None:
        model, batch = case.model(attention), case.batch()
        anatomy = describe_model(model)
        plan = varied_plan(anatomy)
        masked = assert_gates_mask(model, anatomy, plan, batch)
        shrink_model(model, anatomy, plan)
        assert difference(run(model, batch), masked) <= TOLERANCE
        assert [block.units for block in describe_model(model).blocks] == [plan.count(b) for b in anatomy.blocks]

    @pytest.mark.parametrize("kind", ["attention", "feed_forward"])
    def test_every_block_shows_in_the_outputs(self, case: Case, kind: str) -> None:
        model, batch = case.model(), case.batch()
        anatomy = describe_model(model)
        dense = run(model, batch)
        for block in anatomy.blocks:
            if block.kind == kind:
                every_second = (torch.arange(block.units) % 2).float()
                with UnitGates(model, [block], [every_second]):
                    assert difference(run(model, batch), dense) >= VISIBLE

    def test_wrong_row_order_is_caught_and_rolled_back(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        model, batch = case.model(), case.batch()
        anatomy = describe_model(model)
        plan = varied_plan(anatomy)
        before = copy.deepcopy(model.state_dict())
        wrong = [anatomy.attentions[0].inputs[2].path, anatomy.feed_forwards[0].inputs[0].path]
        for path in wrong:
            with monkeypatch.context() as patch:
                cut_in_reverse(patch, path)
                with pytest.raises(PruningError, match="rolled back"):
                    apply_plan(model, anatomy, plan, batch=batch)
            _assert_same(model.state_dict(), before)
        apply_plan(model, anatomy, plan, batch=batch)

    def test_saved_model_loads_bit_for_bit(self, case: Case, tmp_path: Path) -> None:
        model, batch = case.model(), case.batch()
        prune(model, batch)
        expected = run(model, batch)
        model.save_pretrained(tmp_path)
        for loader in (case.model_class, case.auto_class):
            loaded = loader.from_pretrained(tmp_path)
            assert type(loaded) is case.model_class
            assert loaded.config.model_type == case.model_type
            assert loaded.config.architectures == [case.model_class.__name__]
            assert difference(run(loaded, batch), expected) == 0

    def test_trains_and_can_be_pruned_again(self, case: Case, tmp_path: Path) -> None:
        model, batch = case.model(), case.batch()
        heads = {block.key: block.units for block in describe_model(model).attentions}
        plan = prune(model, batch)
        sizes = [parameter.shape for parameter in model.parameters()]
        train_one_step(model, batch)
        assert [parameter.shape for parameter in model.parameters()] == sizes

        anatomy = describe_model(model)
        again = prune(model, batch, seed=1)
        model.save_pretrained(tmp_path)
        loaded = case.auto_class.from_pretrained(tmp_path)
        assert difference(run(loaded, batch), run(model, batch)) == 0
        assert [block.units for block in describe_model(loaded).blocks] == [again.count(b) for b in anatomy.blocks]
        assert_counted_in_dense_model(loaded, anatomy, heads, plan, again)

    def test_prune_model_from_data_to_checkpoint(self, case: Case, tmp_path: Path) -> None:
        model, batches = case.model(), [case.batch(seed) for seed in range(4)]
        settings: dict[str, Any] = {"importance": "magnitude", "rearrange": False} if case.task == "bare" else {}
        config = FisherPruningConfig(flops=0.5, latency_batch_size=2, **settings)
        result = prune_model(model, config, batches)
        assert 0 < result.report.pruned.flops <= 0.5 * result.report.dense.flops
        result.model.save_pretrained(tmp_path)
        loaded = case.auto_class.from_pretrained(tmp_path)
        assert difference(run(loaded, batches[0]), run(model, batches[0])) == 0


@pytest.mark.parametrize("case", [case for case in CASES if case.task != "bare"], ids=str)
def test_gates_take_gradients_of_the_loss(case: Case) -> None:
    model, batch = case.model(), case.batch()
    anatomy = describe_model(model)
    [gradients] = list(iterate_gradients(model, anatomy, [batch]))
    for block, gradient in zip(anatomy.blocks, gradients, strict=True):
        assert gradient.shape == (len(batch["input_ids"]), block.units)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 1e-4


def test_every_wrong_projection_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in (item for item in CASES if item.task == "classification"):
        model, batch = case.model(), case.batch()
        anatomy = describe_model(model)
        plan = varied_plan(anatomy)
        for block in (anatomy.attentions[0], anatomy.feed_forwards[0]):
            for projection in block.projections:
                for wrong in (cut_in_reverse, cut_others):
                    with monkeypatch.context() as patch:
                        wrong(patch, projection.path)
                        with pytest.raises(PruningError, match="rolled back"):
                            apply_plan(model, anatomy, plan, batch=batch)


def _assert_same(state: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    assert list(state) == list(before)
    assert all(torch.equal(state[name], before[name]) for name in before)
