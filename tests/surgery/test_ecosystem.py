"""A pruned model among the tools that people use on models: PEFT, Trainer, pipelines, quantisation, export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_prune import PruningError, describe_model
from tests.conformance.plans import difference, prune, run
from tests.small_models import VOCABULARY, case

BERT = case("bert", "classification")
EVERY_LAYER = ["query", "key", "value", "dense"]


@pytest.fixture
def model() -> PreTrainedModel:
    model = BERT.model()
    prune(model, BERT.batch())
    return model


@pytest.fixture
def rows() -> Dataset:
    batch = BERT.batch(lengths=(9,) * 16)
    return Dataset.from_dict({name: value.tolist() for name, value in batch.items()})


def sizes(model: PreTrainedModel) -> list[int]:
    return [block.units for block in describe_model(model).blocks]


def arguments(folder: Path, **settings: object) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=4,
        save_steps=2,
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors", "ignore:.*tensor.* have invalid shape")
class TestLora:
    def adapted(self, model: PreTrainedModel) -> PeftModel:
        config = LoraConfig(r=2, target_modules=EVERY_LAYER, task_type="SEQ_CLS", init_lora_weights=False)
        torch.manual_seed(0)
        return get_peft_model(model, config).eval()

    def test_trains_on_every_projection_that_is_left(self, model: PreTrainedModel) -> None:
        adapted = self.adapted(model)
        before = {name: value.clone() for name, value in adapted.named_parameters() if value.requires_grad}
        optimizer = torch.optim.SGD([value for value in adapted.parameters() if value.requires_grad], lr=1e-2)
        adapted(**BERT.batch()).loss.backward()
        optimizer.step()
        learnt = [name for name, value in before.items() if not torch.equal(adapted.get_parameter(name), value)]
        for layer, cut in ((0, False), (1, True), (2, False)):
            query = f"layer.{layer}.attention.self.query"
            assert any(f"{query}.lora_A" in name for name in learnt) is not cut

    def test_adapter_is_saved_and_loaded(self, model: PreTrainedModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "base")
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        adapted = self.adapted(base)
        adapted.save_pretrained(tmp_path / "adapter")
        expected = run(adapted, BERT.batch())
        assert difference(expected, run(model, BERT.batch())) > 0.1
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        for loaded in (
            PeftModel.from_pretrained(base, tmp_path / "adapter"),
            AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=3),
        ):
            assert difference(run(loaded.eval(), BERT.batch()), expected) == 0

    def test_merged_model_is_an_ordinary_pruned_one(self, model: PreTrainedModel, tmp_path: Path) -> None:
        before = sizes(model)
        adapted = self.adapted(model)
        expected = run(adapted, BERT.batch())
        with pytest.raises(PruningError, match="merge_and_unload"):
            describe_model(adapted)
        merged = adapted.merge_and_unload()
        assert sizes(merged) == before
        assert difference(run(merged, BERT.batch()), expected) <= 1e-4
        merged.save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert difference(run(loaded, BERT.batch()), run(merged, BERT.batch())) == 0


class TestTrainer:
    def test_resumed_training_ends_where_uninterrupted_training_does(
        self, model: PreTrainedModel, rows: Dataset, tmp_path: Path
    ) -> None:
        before = sizes(model)
        model.save_pretrained(tmp_path / "pruned")
        Trainer(model, arguments(tmp_path / "run"), train_dataset=rows).train()

        fresh = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
        resumed = Trainer(fresh, arguments(tmp_path / "run"), train_dataset=rows)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
        assert resumed.state.global_step == 4
        assert sizes(fresh) == before
        for name, value in model.state_dict().items():
            assert torch.allclose(fresh.state_dict()[name], value, atol=1e-6), name

    def test_trainer_checkpoint_is_a_pruned_model(self, model: PreTrainedModel, rows: Dataset, tmp_path: Path) -> None:
        Trainer(model, arguments(tmp_path, gradient_checkpointing=True), train_dataset=rows).train()
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
        assert sizes(loaded) == sizes(model)
        assert difference(run(loaded, BERT.batch()), run(model.eval(), BERT.batch())) == 0

    def test_model_init_builds_pruned_models(self, model: PreTrainedModel, rows: Dataset, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        trainer = Trainer(
            model_init=lambda: AutoModelForSequenceClassification.from_pretrained(tmp_path),
            args=arguments(tmp_path / "run"),
            train_dataset=rows,
        )
        trainer.train()
        assert sizes(trainer.model) == sizes(model)


def test_pipeline(model: PreTrainedModel, tmp_path: Path) -> None:
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {f"w{index}": index for index in range(2, VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    classify = pipeline("text-classification", str(tmp_path), device="cpu")
    [found] = classify(["w7 w8 w50"], top_k=None)
    [logits] = run(model, {"input_ids": torch.tensor([[7, 8, 50]])})
    for entry in found:
        label = model.config.label2id[entry["label"]]
        assert entry["score"] == pytest.approx(logits.softmax(1)[0, label].item(), abs=1e-6)


@register_quantization_config("rounded")
class RoundedConfig(QuantizationConfigMixin):
    def __init__(self, **settings: object) -> None:
        self.quant_method = "rounded"


@register_quantizer("rounded")
class RoundingQuantizer(HfQuantizer):
    """The least that quantises on load: weights are rounded to 255 levels a row."""

    requires_calibration = False
    is_trainable = False

    def is_serializable(self) -> bool:
        return False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: object) -> PreTrainedModel:
        model.sizes_before_loading = sizes(model)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: object) -> PreTrainedModel:
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.Linear) and module.weight.numel():
                    step = module.weight.abs().amax(1, keepdim=True) / 127
                    module.weight.copy_((module.weight / step).round() * step)
        return model


def test_quantisation_on_load(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=RoundedConfig())
    assert loaded.sizes_before_loading == sizes(model)
    assert loaded.config.quantization_config.quant_method == "rounded"
    assert loaded.config.pruning == model.config.pruning
    assert 0 < difference(run(loaded, BERT.batch()), run(model, BERT.batch())) < 0.5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_eight_bit_arithmetic_after_loading(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    # PyTorch looks for the range of an empty input and finds an arbitrary one: empty projections stay as they are.
    linears = {name for name, module in loaded.named_modules() if isinstance(module, torch.nn.Linear)}
    filled = {name for name in linears if loaded.get_submodule(name).weight.numel()}
    assert len(linears) - len(filled) == 6
    quantised = torch.ao.quantization.quantize_dynamic(loaded, filled, dtype=torch.qint8)
    assert isinstance(quantised.classifier, torch.ao.nn.quantized.dynamic.Linear)
    assert 0 < difference(run(quantised, BERT.batch()), run(model, BERT.batch())) < 0.5


def test_exported_program_gives_the_same_logits(model: PreTrainedModel) -> None:
    batch = {name: value for name, value in BERT.batch().items() if name != "labels"}
    program = torch.export.export(model, (), batch)
    assert (program.module()(**batch).logits - run(model, batch)[0]).abs().max() <= 1e-5
