from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from hf_prune import PruningError, StaticMaskConfig, start_pruning
from hf_prune.adapters.static_mask import StaticMaskLayer
from tests.adapters.masked_models import BATCH, config, logits, masked, set_random_masks, with_zeros
from tests.family_models import main_head
from tests.training.runs import assert_same, bert, weights


class TestForward:
    def test_is_that_of_the_masked_weights(self) -> None:
        model = masked()
        masks = set_random_masks(model)
        assert torch.equal(logits(model), logits(with_zeros(bert(), masks)))

    def test_default_targets_are_the_projections_of_every_layer(self) -> None:
        masks = set_random_masks(masked())
        assert len(masks) == 3 * 6
        assert {name.split(".", 4)[4] for name in masks} == {
            "attention.self.query.weight",
            "attention.self.key.weight",
            "attention.self.value.weight",
            "attention.output.dense.weight",
            "intermediate.dense.weight",
            "output.dense.weight",
        }

    def test_only_scores_and_the_head_learn(self) -> None:
        model = masked()
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        heads = {name for name in learning if "classifier.modules_to_save" in name}
        assert len(heads) == 2
        assert all(name.endswith("static_mask_scores.default") for name in learning - heads)

    def test_conv1d(self) -> None:
        gpt2 = main_head("gpt2")
        model = get_peft_model(gpt2.model(), StaticMaskConfig(sparsity=0.5, task_type="CAUSAL_LM"))
        masks = set_random_masks(model)
        assert len(masks) == 3 * 4
        batch = {"input_ids": BATCH["input_ids"]}
        dense = logits(with_zeros(gpt2.model(), masks), batch)
        assert torch.allclose(logits(model, batch), dense, atol=1e-5)
        assert torch.equal(logits(model.merge_and_unload(), batch), dense)

    def test_generation(self) -> None:
        model = get_peft_model(main_head("llama").model(), StaticMaskConfig(sparsity=0.5, task_type="CAUSAL_LM"))
        set_random_masks(model)
        ids = BATCH["input_ids"]
        found = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
        merged = model.merge_and_unload()
        assert torch.equal(merged.generate(input_ids=ids, max_new_tokens=5, do_sample=False), found)


class TestSeveralAdapters:
    def test_switching_does_not_leak(self) -> None:
        model = masked()
        first = set_random_masks(model)
        model.add_adapter("other", config(exclude_modules=["key"]))
        second = set_random_masks(model, "other", seed=1)
        assert len(second) == len(first) - 3
        assert torch.equal(logits(model), logits(with_zeros(bert(), first)))
        model.set_adapter("other")
        assert torch.equal(logits(model), logits(with_zeros(bert(), second)))
        learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert learning
        assert all(".other" in name for name in learning)
        model.set_adapter("default")
        assert torch.equal(logits(model), logits(with_zeros(bert(), first)))

    def test_disabled_is_the_dense_model(self) -> None:
        model = masked()
        set_random_masks(model)
        before = logits(model)
        with model.disable_adapter():
            assert torch.equal(logits(model), logits(bert()))
        assert torch.equal(logits(model), before)

    def test_deleted(self) -> None:
        model = masked()
        set_random_masks(model)
        model.add_adapter("other", config())
        second = set_random_masks(model, "other", seed=1)
        with pytest.warns(UserWarning, match="now deleted"):
            model.delete_adapter("default")
        assert torch.equal(logits(model), logits(with_zeros(bert(), second)))
        assert not [name for name, _ in model.named_parameters() if ".default" in name]
        assert not [name for name in model.state_dict() if ".default" in name]

    def test_two_at_once_are_refused(self) -> None:
        model = masked(task_type=None)
        model.add_adapter("other", config(task_type=None))
        model.base_model.set_adapter(["default", "other"])
        with pytest.raises(PruningError, match="Only one static mask can be in force, got default, other"):
            logits(model)


class TestMerging:
    def test_merged_and_unmerged_to_the_bit(self) -> None:
        model = masked()
        before = weights(model)
        masks = set_random_masks(model)
        expected = logits(with_zeros(bert(), masks))
        model.merge_adapter(safe_merge=True)
        assert torch.equal(logits(model), expected)
        model.unmerge_adapter()
        assert torch.equal(logits(model), expected)
        after = weights(model)
        assert_same(
            {name: value for name, value in after.items() if "base_layer" in name},
            {name: value for name, value in before.items() if "base_layer" in name},
        )

    def test_unmerging_after_the_mask_has_changed(self) -> None:
        model = masked()
        set_random_masks(model)
        layers = [module for module in model.modules() if isinstance(module, StaticMaskLayer)]
        before = [layer.base_layer.weight.clone() for layer in layers]
        model.merge_adapter()
        for layer in layers:
            layer.static_mask_kept["default"] = ~layer.static_mask_kept["default"]
        with pytest.raises(PruningError, match="unmerge it first"):
            start_pruning(model, model.static_mask_pruning_config(), 4)
        model.unmerge_adapter()
        for layer, weight in zip(layers, before, strict=True):
            assert torch.equal(layer.base_layer.weight, weight)

    def test_disabling_a_merged_adapter(self) -> None:
        model = masked()
        set_random_masks(model)
        model.merge_adapter()
        with model.disable_adapter():
            assert torch.equal(logits(model), logits(bert()))

    def test_merge_and_unload_is_an_ordinary_masked_checkpoint(self, tmp_path: Path) -> None:
        model = masked()
        masks = set_random_masks(model)
        expected = logits(model)
        merged = model.merge_and_unload()
        assert_same(weights(merged), weights(with_zeros(bert(), masks)))
        merged.save_pretrained(tmp_path)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(logits(again), expected)
        removed = sum(int((~mask).sum()) for mask in masks.values())
        total = sum(mask.numel() for mask in masks.values())
        assert again.config.pruning["weights"] == {"removed": removed, "of": total, "matrices": 18}
        assert again.config.pruning["strategy"]["strategy"] == "static_mask"

    def test_unload_gives_the_dense_model_back(self) -> None:
        model = masked()
        set_random_masks(model)
        base = model.unload()
        assert torch.equal(logits(base), logits(bert()))
        assert not hasattr(base.config, "pruning")

    def test_another_mask_on_a_merged_model_is_refused(self) -> None:
        model = masked()
        set_random_masks(model)
        model.merge_adapter()
        with pytest.raises(PruningError, match="unmerge_adapter"):
            model.add_adapter("other", config())
        assert list(model.peft_config) == ["default"]


class TestBesideOtherAdapters:
    def test_lora_on_other_modules(self, tmp_path: Path) -> None:
        def with_lora() -> PreTrainedModel:
            torch.manual_seed(0)
            base = bert()
            get_peft_model(base, LoraConfig(target_modules=["pooler.dense"], init_lora_weights=False))
            return base

        base = with_lora()
        with pytest.warns(UserWarning, match="second time"):
            model = get_peft_model(base, config(), adapter_name="bits")
        masks = set_random_masks(model, "bits")
        expected = logits(with_zeros(with_lora(), masks))
        assert torch.equal(logits(model), expected)
        model(**BATCH).loss.backward()
        scores = base.bert.encoder.layer[0].attention.self.query.static_mask_scores["bits"]
        assert scores.grad is not None
        assert base.bert.pooler.dense.lora_B["default"].weight.grad is not None
        model.save_pretrained(tmp_path, selected_adapters=["bits"])
        assert all("lora" not in name for name in load_file(tmp_path / "bits" / "adapter_model.safetensors"))
        again = PeftModel.from_pretrained(with_lora(), tmp_path / "bits", adapter_name="bits")
        assert torch.equal(logits(again), expected)
        assert torch.allclose(logits(model.merge_and_unload()), expected, atol=1e-5)

    def test_name_that_lora_has_is_refused(self) -> None:
        base = bert()
        get_peft_model(base, LoraConfig(target_modules=["pooler.dense"]))
        with (
            pytest.warns(UserWarning, match="second time"),
            pytest.raises(PruningError, match="has an adapter 'default' of another kind"),
        ):
            get_peft_model(base, config())

    def test_on_a_module_that_has_lora_it_is_refused(self) -> None:
        base = bert()
        get_peft_model(base, LoraConfig(target_modules=["query"]))
        with (
            pytest.warns(UserWarning, match="second time"),
            pytest.raises(PruningError, match=r"query has an adapter of another kind already"),
        ):
            get_peft_model(base, config(), adapter_name="bits")


class TestTargets:
    def test_end_of_a_name_and_expression(self) -> None:
        model = masked(target_modules=["query", r".*layer\.1\.output\.dense"], exclude_modules=r".*layer\.0\..*")
        layers = [name for name, layer in model.named_modules() if isinstance(layer, StaticMaskLayer)]
        assert [name.split("layer.")[1] for name in layers] == [
            "1.attention.self.query",
            "1.output.dense",
            "2.attention.self.query",
        ]

    def test_pattern_that_matches_nothing(self) -> None:
        model = bert()
        with pytest.raises(PruningError, match=r"'qeury' matches nothing\. Did you mean 'query'"):
            masked(model, target_modules=["qeury"])
        assert not any(isinstance(layer, StaticMaskLayer) for layer in model.modules())

    def test_what_is_no_linear_layer(self) -> None:
        with pytest.raises(PruningError, match="word_embeddings is a Embedding; static masks as an adapter are for"):
            masked(target_modules=["word_embeddings"])
