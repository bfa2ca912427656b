from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from hf_prune import PruningCallback, PruningError, StaticPruningConfig, resume_pruning, save_pruning, start_pruning
from hf_prune.adapters.static_mask.masks import AdapterMasks
from hf_prune.budget import kept_count
from hf_prune.gates.bits import pack_mask
from tests.adapters.masked_models import BATCH, logits, masked
from tests.training.runs import assert_same, bert, train, trainer_of, weights

SIDE_FILE = "pruning_state.static_mask"


def learnt(model: PeftModel, adapter: str = "default") -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Masks and scores by name."""
    masks = AdapterMasks(model.get_base_model(), adapter)
    names = [matrix.name for matrix in masks.matrices]
    scores = [layer.static_mask_scores[adapter].detach() for layer in masks.layers]
    return dict(zip(names, masks.masks, strict=True)), dict(zip(names, scores, strict=True))


def trained(folder: Path, model: PeftModel | None = None, *, head: bool = True, **settings: Any) -> PeftModel:
    model = masked() if model is None else model
    if not head:
        model.get_base_model().classifier.requires_grad_(False)
    callback = PruningCallback()
    trainer_of(model.train(), folder, callback, **settings).train()
    return model


def assert_dense_below(model: PeftModel) -> None:
    """The base model is bit for bit what it was."""
    before = weights(bert())
    for name, value in model.get_base_model().state_dict().items():
        if "static_mask" not in name and "modules_to_save" not in name:
            original = name.replace(".base_layer", "").replace(".original_module", "")
            assert torch.equal(value, before[original]), name


class TestTraining:
    @pytest.mark.parametrize("masking", ["local", "score", "global"])
    def test_same_masks_as_in_place(self, tmp_path: Path, masking: str) -> None:
        """One rule underneath; a Trainer's clipping would see the scores' gradients in one of the two only."""
        settings = {"sparsity": 0.7, "score_learning_rate": 0.05, "masking": masking}
        plain = bert()
        callback = train(plain, tmp_path / "plain", StaticPruningConfig(**settings), max_grad_norm=0.0)
        model = trained(tmp_path / "adapter", masked(masking=masking), max_grad_norm=0.0)
        masks, _ = learnt(model)
        assert callback.result is not None
        assert_same(masks, dict(callback.result.plan.masks))
        assert torch.allclose(logits(model), logits(plain), atol=1e-6)
        assert_dense_below(model)
        with model.disable_adapter():
            assert torch.equal(logits(model), logits(bert()))

    def test_result(self, tmp_path: Path) -> None:
        model, callback = masked(magnitude_prior=0.0), PruningCallback()
        trainer_of(model, tmp_path / "run", callback).train()
        assert callback.result is not None
        masks, scores = learnt(model)
        for name, mask in masks.items():
            assert int(mask.sum()) == kept_count(mask.numel(), 0.7)
            assert scores[name][mask].min() >= scores[name][~mask].max()
        assert callback.result.model is model
        heads = 2 * sum(parameter.numel() for parameter in bert().classifier.parameters())
        assert callback.result.report.parameters == sum(p.numel() for p in bert().bert.parameters()) + heads
        assert not hasattr(model.config, "pruning")
        callback.result.save_pretrained(tmp_path / "result")
        again = PeftModel.from_pretrained(bert(), tmp_path / "result")
        assert torch.equal(logits(again), logits(model))

    def test_learning_rate_schedule_and_decay_of_the_trainer_do_not_touch_scores(self, tmp_path: Path) -> None:
        settings: list[dict[str, Any]] = [
            {"learning_rate": 1e-3, "weight_decay": 0.0},
            {"learning_rate": 0.3, "weight_decay": 0.5, "lr_scheduler_type": "cosine", "warmup_steps": 3},
            {"optim": "sgd", "learning_rate": 0.5, "weight_decay": 0.5},
        ]
        runs = [learnt(trained(tmp_path / str(i), head=False, **more)) for i, more in enumerate(settings)]
        for run in runs[1:]:
            assert_same(run[1], runs[0][1])
            assert_same(run[0], runs[0][0])

    def test_optimizer_keeps_nothing_for_scores(self, tmp_path: Path) -> None:
        model = masked()
        trainer = trainer_of(model, tmp_path, PruningCallback())
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        scores = {id(p) for name, p in model.named_parameters() if "static_mask_scores" in name}
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert scores <= held
        assert not scores & {id(p) for p in optimizer.state}
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks

    def test_second_training_begins_anew(self, tmp_path: Path) -> None:
        model = trained(tmp_path / "first", head=False)
        first = {name: value.clone() for name, value in learnt(model)[1].items()}
        trained(tmp_path / "second", model, head=False)
        assert_same(learnt(model)[1], first)

    def test_only_the_active_adapter_learns(self, tmp_path: Path) -> None:
        model = trained(tmp_path / "first")
        first = {name: value.clone() for name, value in learnt(model)[0].items()}
        before = logits(model)
        model.add_adapter("other", masked(sparsity=0.5, exclude_modules=["key"]).peft_config["default"])
        model.set_adapter("other")
        trained(tmp_path / "second", model)
        masks, _ = learnt(model, "other")
        assert all(int(mask.sum()) == kept_count(mask.numel(), 0.5) for mask in masks.values())
        assert len(masks) == 15
        model.set_adapter("default")
        assert_same(learnt(model)[0], first)
        assert torch.equal(logits(model), before)

    def test_in_any_loop(self, tmp_path: Path) -> None:
        def run(steps: int, folder: Path | None = None, save: int = -1) -> PeftModel:
            model = masked()
            config = model.peft_config["default"].pruning_config()
            optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.0)
            pruner = (
                start_pruning(model, config, 6, optimizer)
                if folder is None
                else resume_pruning(model, config, 6, folder, optimizer)
            )
            while pruner.step < steps:
                model(**BATCH).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if pruner.step == save:
                    save_pruning(pruner, tmp_path)
            pruner.finish()
            return model

        whole = run(6, save=3)
        assert_same(learnt(run(6, tmp_path))[1], learnt(whole)[1])


class TestTrainerFeatures:
    def test_checkpoint_is_an_adapter_with_the_masks_so_far(self, tmp_path: Path) -> None:
        trained(tmp_path, save_strategy="steps", save_steps=2)
        folder = tmp_path / "checkpoint-2"
        assert [path.name for path in folder.glob("pruning_state.*")]
        tensors = load_file(folder / "adapter_model.safetensors")
        bits = {name: value for name, value in tensors.items() if name.endswith(".static_mask_bits")}
        side = load_file(next(folder.glob("pruning_state.*")))
        assert len(bits) == 18
        for name, value in bits.items():
            short = name.removeprefix("base_model.model.").removesuffix(".static_mask_bits")
            assert torch.equal(value, side[f"{short}.weight.bits"])
        again = PeftModel.from_pretrained(bert(), folder)
        assert float(logits(again).abs().sum()) > 0

    def test_resumed_run_is_the_same_to_the_bit(self, tmp_path: Path) -> None:
        def model() -> PeftModel:
            return masked(bert(dropout=0.1), masking="score")

        whole = trained(tmp_path, model(), save_strategy="steps", save_steps=3)
        again = model()
        trainer_of(again, tmp_path, PruningCallback()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert_same(weights(again), weights(whole))

    def test_a_resume_that_fails_leaves_a_trained_mask(self, tmp_path: Path) -> None:
        checkpoint = tmp_path / "checkpoint-3"
        model = trained(tmp_path, save_strategy="steps", save_steps=3)
        next(checkpoint.glob("pruning_state.*")).unlink()
        with pytest.raises(PruningError, match="is missing"):  # the Trainer has loaded the checkpoint's masks by then
            trainer_of(model, tmp_path / "again", PruningCallback()).train(resume_from_checkpoint=str(checkpoint))
        with pytest.raises(PruningError, match=r"holds no pruning_state"):
            resume_pruning(model, model.static_mask_pruning_config(), 6, checkpoint)
        stored = AdapterMasks(PeftModel.from_pretrained(bert(), checkpoint).get_base_model(), "default").masks
        own = AdapterMasks(model.get_base_model(), "default").masks
        assert not all(mask.all() for mask in own)
        assert all(torch.equal(*pair) for pair in zip(own, stored, strict=True))

    def test_what_is_resumed_and_abandoned_keeps_everything(self, tmp_path: Path) -> None:
        trained(tmp_path, save_strategy="steps", save_steps=3)
        model = PeftModel.from_pretrained(bert(), tmp_path / "checkpoint-3", is_trainable=True)
        resume_pruning(model, model.static_mask_pruning_config(), 6, tmp_path / "checkpoint-3").abandon()
        assert all(mask.all() for mask in AdapterMasks(model.get_base_model(), "default").masks)

    def test_best_checkpoint_at_the_end(self, tmp_path: Path) -> None:
        model, callback = masked(), PruningCallback()
        trainer = trainer_of(
            model,
            tmp_path,
            callback,
            trainer_settings={"eval_dataset": trainer_of(bert(), tmp_path).train_dataset},
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
        )
        trainer.train()
        best = load_file(Path(trainer.state.best_model_checkpoint) / "adapter_model.safetensors")
        for name, mask in learnt(model)[0].items():
            key = f"base_model.model.{name.removesuffix('.weight')}.static_mask_bits"
            assert torch.equal(pack_mask(mask), best[key])

    def test_gradient_accumulation_is_a_larger_batch(self, tmp_path: Path) -> None:
        settings = {"regularization": 0.0, "begin": 4, "end": 5}
        large = trained(tmp_path / "large", masked(**settings), head=False, max_steps=3)
        more = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3}
        small = trained(tmp_path / "small", masked(**settings), head=False, **more)
        for name, score in learnt(large)[1].items():
            assert torch.allclose(score, learnt(small)[1][name], atol=1e-4), name

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_gradient_checkpointing(self, tmp_path: Path, reentrant: bool) -> None:
        plain = trained(tmp_path / "plain", head=False)
        settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        checkpointed = trained(tmp_path / "checkpointed", head=False, **settings)
        for name, score in learnt(plain)[1].items():
            assert torch.allclose(score, learnt(checkpointed)[1][name], atol=1e-5), name

    def test_mixed_precision(self, tmp_path: Path) -> None:
        model = trained(tmp_path, bf16=True)
        assert all(score.dtype == torch.float32 and score.any() for score in learnt(model)[1].values())
        assert_dense_below(model)

    def test_base_model_in_half_precision(self, tmp_path: Path) -> None:
        model = trained(tmp_path, masked(bert().bfloat16()))
        assert all(score.dtype == torch.float32 and score.any() for score in learnt(model)[1].values())


class TestRefusals:
    def test_other_settings_than_the_adapter_has(self, tmp_path: Path) -> None:
        callback = PruningCallback(StaticPruningConfig(sparsity=0.2))
        with pytest.raises(PruningError, match="whose own settings hold: use PruningCallback"):
            trainer_of(masked(), tmp_path, callback).train()

    def test_adapter_that_was_loaded_for_inference(self, tmp_path: Path) -> None:
        masked().save_pretrained(tmp_path / "mask")
        model = PeftModel.from_pretrained(bert(), tmp_path / "mask")
        model.get_base_model().classifier.requires_grad_(True)
        with pytest.raises(PruningError, match="is_trainable=True"):
            trainer_of(model, tmp_path, PruningCallback()).train()

    def test_scores_in_half_precision(self, tmp_path: Path) -> None:
        with pytest.raises(PruningError, match="are of bfloat16, but must stay float32"):
            trainer_of(masked().bfloat16(), tmp_path, PruningCallback()).train()

    def test_model_without_a_mask(self, tmp_path: Path) -> None:
        model = get_peft_model(bert(), LoraConfig(task_type="SEQ_CLS"))
        with pytest.raises(PruningError, match="config says nothing of removed weights"):
            trainer_of(model, tmp_path, PruningCallback()).train()
