"""`recover`: a pruned model comes closer to its teacher and stays the ordinary checkpoint that it was."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainerCallback

from hf_prune import (
    FisherPruningConfig,
    LayerDropPruningConfig,
    MagnitudePruningConfig,
    PruningError,
    prune_model,
    recover,
)
from hf_prune.recovery import low_rank
from tests.conformance.plans import difference, run
from tests.small_models import case, sizes
from tests.training.runs import BERT, arguments, assert_same, bert, rows, weights
from tests.witness import Witness

RECOVER = importlib.import_module("hf_prune.recover")  # in the package its name is that of the function
ROWS = rows(32)
BATCH = {name: torch.tensor(ROWS[name]) for name in ROWS.column_names}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def pruned(**evaluation: Any) -> PreTrainedModel:
    """With layers of unequal size, one of them without heads, and nothing repaired."""
    settings = {"recovery": "none", "rearrange": False, "latency_batch_size": 2, "round_to": 1}
    model = prune_model(bert(), FisherPruningConfig(flops=0.4, **settings), ROWS, **evaluation).model
    assert len(set(sizes(model)[1::2])) == 3
    return model


def distance(model: PreTrainedModel, teacher: PreTrainedModel) -> float:
    """Mean KL of what the model says from what the teacher says."""
    with torch.no_grad():
        found, wanted = (one(**BATCH).logits.log_softmax(-1) for one in (model, teacher))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def recovered(model: PreTrainedModel, teacher: PreTrainedModel, folder: Path, **settings: Any) -> PreTrainedModel:
    rate = 5e-3 if settings.get("lora", True) else 1e-3
    args = arguments(folder, max_steps=24, learning_rate=rate, per_device_train_batch_size=16)
    return recover(model, teacher, ROWS, training_args=args, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"teacher_weight": 1.0},
        {"lora": False, "temperature": 1.0, "teacher_weight": 1.0},
        {"lora": LoraConfig(r=4, target_modules=["query", "dense"]), "hidden_weight": 1.0, "teacher_weight": 0.9},
    ],
    ids=["lora", "full", "hidden"],
)
def test_a_pruned_model_comes_closer_to_its_teacher(settings: dict[str, Any], tmp_path: Path) -> None:
    teacher, model = bert(), pruned().train()
    model.bert.embeddings.requires_grad_(False)
    before, size, metadata = distance(model.eval(), teacher), sizes(model), model.config.pruning
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    embeddings = model.bert.embeddings.word_embeddings.weight.clone()
    taught = weights(teacher)
    model.train()
    assert recovered(model, teacher, tmp_path / "out", **settings) is model
    assert all(module.training for module in model.modules())
    model.eval()
    assert distance(model, teacher) < 0.6 * before
    assert sizes(model) == size
    assert_same(taught, weights(teacher))
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, embeddings)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in (*model.modules(), *teacher.modules())
    )
    assert not hasattr(model, "peft_config")
    assert {type(module).__module__.split(".")[0] for module in model.modules()} == {"torch", "transformers"}
    assert {key: model.config.pruning[key] for key in metadata} == metadata
    model.save_pretrained(tmp_path / "small")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert difference(run(loaded, BATCH), run(model, BATCH)) == 0
    assert loaded.config.pruning == model.config.pruning


def test_merged_adapters_say_what_they_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[torch.Tensor]] = []

    def watched(model: PreTrainedModel, config: LoraConfig) -> Any:
        student = get_peft_model(model, config)
        merge = student.base_model.merge_and_unload

        def merged(**settings: Any) -> Any:
            student.eval()
            said.append(run(model, BATCH))
            return merge(**settings)

        student.base_model.merge_and_unload = merged
        return student

    monkeypatch.setattr(low_rank, "get_peft_model", watched)
    model = pruned()
    before = run(model, BATCH)
    recovered(model, bert(), tmp_path)
    (adapted,) = said
    assert difference(run(model, BATCH), adapted) < 1e-4 < 1e-1 < difference(before, adapted)


def test_with_settings_of_its_own(tmp_path: Path) -> None:
    """A teacher by name, an epoch where the model is, GPT-2's kind of projections, and no trace of the Trainer."""
    teacher = case("bert", "causal").model()
    teacher.save_pretrained(tmp_path / "dense")
    model = case("bert", "causal").model(seed=1)
    assert model.config.use_cache
    before = weights(model)
    batch = case("bert", "causal").batch(lengths=(9,) * 64)
    recover(model, tmp_path / "dense", [{name: value[row] for name, value in batch.items()} for row in range(64)])
    assert model.config.use_cache
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    layers = {name for name in before if ".layer." in name and "LayerNorm" not in name and name.endswith("weight")}
    assert changed == layers


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("lora", [True, False])
def test_training_goes_without_dropout(lora: bool, checkpointed: bool, tmp_path: Path) -> None:
    def trained(dropout: bool, probability: float) -> dict[str, torch.Tensor]:
        rates = {"hidden_dropout_prob": probability, "attention_probs_dropout_prob": probability}
        model, teacher = BERT.model(**rates), BERT.model(seed=1)
        args = arguments(tmp_path, max_steps=3, learning_rate=1e-2, activation_checkpointing=checkpointed)
        torch.manual_seed(0)  # of the adapters
        recover(model, teacher, ROWS, training_args=args, lora=lora, dropout=dropout)
        return weights(model)

    without = trained(True, 0.0)
    assert_same(trained(False, 0.3), without)
    with pytest.raises(AssertionError):
        assert_same(trained(True, 0.3), without)


def test_a_head_that_is_trained_beside_the_adapters(tmp_path: Path) -> None:
    """PEFT trains a copy of it, without dropout as well; the model's own module gets what that has learnt."""

    def trained(probability: float) -> dict[str, torch.Tensor]:
        rates = {"hidden_dropout_prob": probability, "attention_probs_dropout_prob": probability}
        model = case("roberta", "classification").model(**rates).requires_grad_(False)
        modules, before = dict(model.named_modules()), weights(model)
        config = LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
        torch.manual_seed(0)  # of the adapters
        teacher = case("roberta", "classification").model(seed=1)
        args = arguments(tmp_path, max_steps=3, learning_rate=1e-2)
        recover(model, teacher, ROWS, training_args=args, lora=config)
        assert dict(model.named_modules()) == modules
        changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
        assert {name.split(".")[0] for name in changed} == {"roberta", "classifier"}
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        return weights(model)

    assert_same(trained(0.3), trained(0.0))


def test_data_without_labels_will_do(tmp_path: Path) -> None:
    def trained(data: Any) -> dict[str, torch.Tensor]:
        model = pruned()
        torch.manual_seed(0)  # of the adapters
        recover(model, bert(), data, training_args=arguments(tmp_path, max_steps=3), teacher_weight=1.0)
        return weights(model)

    assert_same(trained(ROWS.remove_columns("labels")), trained(ROWS))


@pytest.mark.parametrize("evaluated", [True, False])
def test_metrics_of_before_the_training_do_not_stay(evaluated: bool, tmp_path: Path) -> None:
    measure = {"eval_dataset": ROWS, "compute_metrics": accuracy}
    model = pruned(**measure)
    dense = model.config.pruning["metrics"]["dense"]
    recovered(model, bert(), tmp_path, **(measure if evaluated else {}))
    metrics = model.config.pruning["metrics"]
    assert metrics["dense"] == dense
    if evaluated:
        with torch.no_grad():
            right = (model(**BATCH).logits.argmax(1) == BATCH["labels"]).float().mean().item()
        assert metrics["pruned"]["accuracy"] == pytest.approx(right)
    else:
        assert "pruned" not in metrics


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failed_training_leaves_the_model(
    lora: bool, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise error

    model = pruned().train()
    witness = Witness(model)
    trainer_class = RECOVER.Trainer
    monkeypatch.setattr(RECOVER, "Trainer", lambda *given, **more: trainer_class(*given, **more, callbacks=[Failing()]))
    with pytest.raises(error):
        recovered(model, bert(), tmp_path, lora=lora, hidden_weight=0.5)
    for parameter in model.parameters():
        parameter.grad = None
    witness.check()


TRACES = {
    "mixed precision": {"bf16": True},
    "checkpointing": {"activation_checkpointing": True},
    "noise": {"neftune_noise_alpha": 5.0},
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("lora", [LoraConfig(target_modules=["query"], modules_to_save=["classifier"]), False])
@pytest.mark.parametrize("trace", TRACES)
def test_a_training_leaves_no_traces_on_modules(
    trace: str, lora: Any, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert()
    witness, modules = Witness(model), dict(model.named_modules())
    before = {name: {*vars(module)} for name, module in modules.items()}
    if fails:
        monkeypatch.setattr(RECOVER, "_renew_metrics", None)
    args = arguments(tmp_path, max_steps=2, **TRACES[trace])
    with pytest.raises(TypeError) if fails else nullcontext():
        recover(model, BERT.model(seed=1), ROWS, training_args=args, lora=lora, dropout=True)
    assert dict(model.named_modules()) == modules
    assert {name: {*vars(module)} for name, module in modules.items()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules.values())
    assert not model.is_activation_checkpointing
    if fails:
        for parameter in model.parameters():
            parameter.grad = None
        witness.check()


class TestRefusals:
    def test_itself_as_teacher(self) -> None:
        model = bert()
        with pytest.raises(PruningError, match="The teacher is the pruned model itself"):
            recover(model, model, ROWS)

    def test_a_model_with_zeros(self) -> None:
        model = prune_model(bert(), MagnitudePruningConfig(sparsity=0.5)).model
        with pytest.raises(PruningError, match=r"recover would fill them in again.*HoldPruningConfig"):
            recover(model, bert(), ROWS)

    def test_hidden_states_of_removed_layers(self) -> None:
        model = prune_model(bert(), LayerDropPruningConfig(layers=2)).model
        with pytest.raises(PruningError, match="teacher's 3 layers are not the model's 2"):
            recover(model, bert(), ROWS, hidden_weight=1.0)

    def test_adapters_that_are_there(self) -> None:
        model = get_peft_model(bert(), LoraConfig(target_modules=["query"]))
        with pytest.raises(PruningError, match="not a PeftModel; merge adapters first"):
            recover(model, bert(), ROWS)  # type: ignore[arg-type]

    def test_a_loss_of_the_trainers_own(self, tmp_path: Path) -> None:
        with pytest.raises(PruningError, match=r"label_smoothing_factor=0\.1 makes the Trainer"):
            recover(bert(), BERT.model(seed=1), ROWS, training_args=arguments(tmp_path, label_smoothing_factor=0.1))

    def test_adapters_that_transformers_has_put_on(self) -> None:
        model = bert()
        model.add_adapter(LoraConfig(target_modules=["query"]))
        with pytest.raises(PruningError, match=r"has adapters on it.*delete_adapter"):
            recover(model, bert(), ROWS)

    def test_adapters_that_fit_only_in_part(self) -> None:
        model = bert()
        witness, modules = Witness(model), dict(model.named_modules())
        with pytest.raises(PruningError, match="PEFT puts no such adapters"):
            recover(model, bert(), ROWS, lora=LoraConfig(target_modules=["query", "attention.output.LayerNorm"]))
        assert dict(model.named_modules()) == modules
        witness.check()

    def test_a_tied_head_beside_the_adapters(self) -> None:
        model = case("bert", "causal").model()
        modules = dict(model.named_modules())
        config = LoraConfig(target_modules=["query"], modules_to_save=["decoder"])
        with pytest.raises(PruningError, match=r"^modules_to_save trains cls\.predictions\.decoder apart"):
            recover(model, case("bert", "causal").model(seed=1), ROWS, lora=config)
        assert dict(model.named_modules()) == modules
        assert not hasattr(model, "peft_config")

    def test_noise_that_would_not_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(PruningError, match=r"neftune_noise_alpha=5\.0 adds noise in training mode only"):
            recover(bert(), BERT.model(seed=1), ROWS, training_args=arguments(tmp_path, neftune_noise_alpha=5.0))

    def test_adapters_that_fit_nowhere(self) -> None:
        model = bert()
        witness = Witness(model)
        with pytest.raises(PruningError, match="PEFT puts no such adapters on BertForSequenceClassification"):
            recover(model, bert(), ROWS, lora=LoraConfig(target_modules=["nowhere"]))
        witness.check()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
            ({"teacher_weight": 0.0}, r"weight=0.0 must lie in \(0, 1\]"),
            ({"hidden_weight": -1.0}, "hidden_weight=-1.0 must be a number of at least 0"),
            ({"dropout": 0.1}, "dropout=0.1 must be True or False"),
            ({"lora": 8}, "lora=8 must be True, False"),
            ({"lora": None}, "lora=None must be True, False"),
            ({"lora": LoraConfig(layers_to_transform=[0])}, r"layers_to_transform=\[0\] chooses among target_modules"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(PruningError, match=message):
            recover(bert(), BERT.model(seed=1), ROWS, **settings)
