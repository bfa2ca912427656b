from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file

from hf_prune import PruningError, StaticMaskConfig
from tests.adapters.masked_models import config, logits, masked, set_random_masks, with_zeros
from tests.training.runs import bert

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A saved adapter, and the logits of its model."""
    model = masked()
    set_random_masks(model)
    with torch.no_grad():
        model.get_base_model().classifier.modules_to_save["default"].weight.mul_(2)
    model.save_pretrained(tmp_path / "mask")
    return tmp_path / "mask", logits(model)


class TestSaving:
    def test_one_bit_per_weight_and_the_head(self, saved: tuple[Path, torch.Tensor]) -> None:
        tensors = load_file(saved[0] / WEIGHTS)
        bits = {name: value for name, value in tensors.items() if value.dtype == torch.uint8}
        sizes = [parameter.numel() for name, parameter in bert().bert.encoder.named_parameters() if "weight" in name]
        assert sum(value.numel() for value in bits.values()) == sum(size for size in sizes if size > 32) / 8
        assert len(bits) == 18
        assert all(name.endswith(".static_mask_bits") for name in bits)
        assert {name.split(".")[-2] for name in set(tensors) - set(bits)} == {"classifier"}

    def test_configuration(self, saved: tuple[Path, torch.Tensor]) -> None:
        data = json.loads((saved[0] / "adapter_config.json").read_text())
        assert data["peft_type"] == "STATIC_MASK"
        assert data["sparsity"] == 0.7
        assert [len(digest) for digest in data["base_fingerprint"].split("-")] == [64, 64]
        assert "check_base" not in data
        assert isinstance(PeftConfig.from_pretrained(saved[0]), StaticMaskConfig)

    def test_only_the_chosen_adapter(self, tmp_path: Path) -> None:
        model = masked()
        model.add_adapter("other", config())
        second = set_random_masks(model, "other", seed=1)
        model.save_pretrained(tmp_path, selected_adapters=["other"])
        loaded = PeftModel.from_pretrained(bert(), tmp_path / "other")
        assert torch.equal(logits(loaded), logits(with_zeros(bert(), second)))


class TestLoading:
    @pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
    def test_same_logits(self, saved: tuple[Path, torch.Tensor], low_cpu_mem_usage: bool) -> None:
        model = PeftModel.from_pretrained(bert(), saved[0], low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(logits(model), saved[1])
        assert not [name for name, _ in model.named_parameters() if "scores" in name]
        assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def test_in_a_new_process(
        self, saved: tuple[Path, torch.Tensor], tmp_path: Path, run_python: Callable[..., str]
    ) -> None:
        bert().save_pretrained(tmp_path / "base")
        code = (
            "import sys, json, hf_prune, torch\n"
            "from peft import AutoPeftModelForSequenceClassification, PeftModel\n"
            "from transformers import AutoModelForSequenceClassification\n"
            "from tests.adapters.masked_models import logits\n"
            "torch.set_num_threads(1)\n"
            "base = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])\n"
            "print(json.dumps(logits(PeftModel.from_pretrained(base, sys.argv[2])).tolist()))"
        )
        found = torch.tensor(json.loads(run_python(code, tmp_path / "base", saved[0]).splitlines()[-1]))
        assert torch.equal(found, saved[1])

    def test_beside_another(self, saved: tuple[Path, torch.Tensor]) -> None:
        model = masked()
        before = set_random_masks(model, seed=2)
        model.load_adapter(saved[0], "loaded")
        assert torch.equal(logits(model), logits(with_zeros(bert(), before)))
        model.set_adapter("loaded")
        assert torch.equal(logits(model), saved[1])

    def test_trainable(self, saved: tuple[Path, torch.Tensor]) -> None:
        model = PeftModel.from_pretrained(bert(), saved[0], is_trainable=True)
        assert torch.equal(logits(model), saved[1])
        assert [name for name, parameter in model.named_parameters() if parameter.requires_grad and "scores" in name]


class TestRefusals:
    def test_changed_base(self, saved: tuple[Path, torch.Tensor]) -> None:
        changed = bert()
        with torch.no_grad():
            changed.bert.encoder.layer[1].output.dense.weight[3, 5] += 0.1
        with pytest.raises(PruningError, match="made for other weights than those of this BertForSequenceClassif"):
            PeftModel.from_pretrained(changed, saved[0])
        assert not [name for name, _ in changed.named_modules() if name.endswith("base_layer")]
        settings = StaticMaskConfig.from_pretrained(saved[0], check_base=False)
        assert logits(PeftModel.from_pretrained(changed, saved[0], config=settings)).isfinite().all()

    def test_changed_base_of_a_second_adapter(self, saved: tuple[Path, torch.Tensor]) -> None:
        model = masked(bert(seed=1))
        with pytest.raises(PruningError, match="made for other weights"):
            model.load_adapter(saved[0], "other")
        assert list(model.peft_config) == ["default"]
        model.add_adapter("other", StaticMaskConfig.from_pretrained(saved[0], check_base=False))
        model.load_adapter(saved[0], "other")

    def test_other_weights_of_the_head_are_no_change(self, saved: tuple[Path, torch.Tensor]) -> None:
        base = bert()
        with torch.no_grad():
            base.classifier.weight.add_(1)
        assert torch.equal(logits(PeftModel.from_pretrained(base, saved[0])), saved[1])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_the_same_base(self, saved: tuple[Path, torch.Tensor], dtype: torch.dtype) -> None:
        model = PeftModel.from_pretrained(bert().to(dtype), saved[0])
        assert torch.allclose(logits(model).float(), saved[1], atol=0.3)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_made_in_half_precision(self, tmp_path: Path, dtype: torch.dtype) -> None:
        masked(bert().to(dtype)).save_pretrained(tmp_path)
        for now in (dtype, torch.float32):
            PeftModel.from_pretrained(bert().to(now), tmp_path)
        with pytest.raises(PruningError, match="made for other weights"):
            PeftModel.from_pretrained(bert(seed=1).to(dtype), tmp_path)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda bits: bits[:-1], "takes 128 bytes, got"),
            (lambda bits: bits.float(), "takes 128 bytes, got"),
            (None, "holds no mask for base_model.model.bert.encoder.layer.0.attention.self.query"),
        ],
    )
    def test_masks_that_do_not_fit(
        self, saved: tuple[Path, torch.Tensor], damage: Callable[[torch.Tensor], torch.Tensor] | None, message: str
    ) -> None:
        path = saved[0] / WEIGHTS
        tensors = load_file(path)
        name = "base_model.model.bert.encoder.layer.0.attention.self.query.static_mask_bits"
        bits = tensors.pop(name)
        if damage is not None:
            tensors[name] = damage(bits)
        save_file(tensors, path)
        with pytest.raises(PruningError, match=message):
            PeftModel.from_pretrained(bert(), saved[0])

    def test_mask_for_another_layer(self, saved: tuple[Path, torch.Tensor]) -> None:
        path = saved[0] / WEIGHTS
        tensors = load_file(path)
        bits = tensors["base_model.model.bert.encoder.layer.0.attention.self.query.static_mask_bits"]
        save_file(tensors | {"base_model.model.bert.encoder.layer.9.query.static_mask_bits": bits.clone()}, path)
        with pytest.raises(PruningError, match=r"a mask for base_model.model.bert.encoder.layer.9.query, which this"):
            PeftModel.from_pretrained(bert(), saved[0])

    def test_verb_that_cannot_read_masks(self, saved: tuple[Path, torch.Tensor]) -> None:
        """Without an error the model would run with masks that keep everything."""
        model = bert()
        model.load_adapter(str(saved[0]))
        with pytest.raises(PruningError, match=r"Load it with PeftModel.from_pretrained"):
            logits(model)
