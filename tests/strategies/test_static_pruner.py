from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer, TrainerCallback

from hf_prune import MagnitudePruningConfig, PruningCallback, PruningError, StaticPruningConfig, start_pruning
from hf_prune.budget import kept_count
from hf_prune.scores import cubic_sparsity
from hf_prune.strategies.static_mask import StaticPruner
from hf_prune.strategies.static_mask.rule import masks_by_kind
from tests.failing import Failing
from tests.strategies.straight_through import learnt_scores
from tests.training.runs import (
    BERT,
    STEPS,
    arguments,
    assert_close,
    assert_same,
    bert,
    is_clean,
    rows,
    train,
    trainer_of,
    weights,
)

STATIC = StaticPruningConfig(sparsity=0.7, score_learning_rate=0.05)


class Watch(TrainerCallback):
    """Looks at the pruner after each step."""

    def __init__(self, callback: PruningCallback) -> None:
        self.callback = callback
        self.scores: list[list[torch.Tensor]] = []
        self.masks: list[list[torch.Tensor]] = []
        self.pruner: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pruner = pruner = self.callback._pruner
        assert pruner is not None
        self.scores.append([score.detach().clone() for score in pruner.scores.scores(pruner.masks)])
        self.masks.append([mask.clone() for mask in pruner.masks.masks])


def watched(model: Any, folder: Path, config: StaticPruningConfig | None = STATIC, **settings: Any) -> Watch:
    callback = PruningCallback(config)
    watch = Watch(callback)
    trainer_of(model, folder, callback, watch, **settings).train()
    return watch


def assert_frozen(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> None:
    """What is not zero is what it was, but for the task head."""
    changed = set()
    for name, value in model.state_dict().items():
        same = (value == before[name]) | (value == 0)
        if not same.all():
            changed.add(name)
    assert changed == {"classifier.weight", "classifier.bias"}


class TestTraining:
    def test_kept_weights_are_what_they_were(self, tmp_path: Path) -> None:
        model = bert()
        before = weights(model)
        callback = train(model, tmp_path, STATIC, weight_decay=0.1)
        assert_frozen(model, before)
        assert is_clean(model)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.bert.parameters())
        assert callback.result is not None
        for name, mask in callback.result.plan.masks.items():
            assert int(mask.sum()) == kept_count(mask.numel(), 0.7)
            assert torch.equal(model.state_dict()[name], before[name] * mask)

    def test_result_is_an_ordinary_checkpoint(self, tmp_path: Path) -> None:
        model = bert()
        callback = train(model, tmp_path / "run", STATIC)
        assert callback.result is not None
        callback.result.save_pretrained(tmp_path / "pruned")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
        assert_same(weights(again), weights(model))
        assert again.config.pruning["weights"]["removed"] == callback.result.report.removed

    @pytest.mark.parametrize("masking", ["local", "score", "global"])
    @pytest.mark.parametrize(("schedule", "prior"), [("cubic", 0.0), ("cubic", 0.3), ("linear", 0.0)])
    def test_masks_are_the_highest_ranks_after_every_step(
        self, tmp_path: Path, masking: str, schedule: str, prior: float
    ) -> None:
        settings = {"masking": masking, "schedule": schedule, "magnitude_prior": prior}
        config = StaticPruningConfig(sparsity=0.6, score_learning_rate=0.05, **settings)
        watch, dense = watched(bert(), tmp_path, config), bert().state_dict()
        matrices = watch.pruner.masks.matrices
        priors = [dense[matrix.name].abs() * prior / dense[matrix.name].std() for matrix in matrices]
        for step, (scores, masks) in enumerate(zip(watch.scores, watch.masks, strict=True), start=1):
            power = 3 if schedule == "cubic" else 1
            value = cubic_sparsity(step, 0, round(0.6 * 6), 0.0, 0.6, power)
            ranks = [score + magnitude for score, magnitude in zip(scores, priors, strict=True)]
            flat = torch.cat([rank.flatten() for rank in ranks])
            if masking == "global":
                keep = kept_count(flat.numel(), value)
                threshold = flat.sort(descending=True).values[keep - 1]
                assert sum(int(mask.sum()) for mask in masks) == keep
                assert all((rank[mask] >= threshold - 1e-6).all() for rank, mask in zip(ranks, masks, strict=True))
                continue
            kinds = [matrix.kind for matrix in matrices]
            expected = masks_by_kind(scores, kinds, value) if masking == "score" else None
            for index, (rank, mask) in enumerate(zip(ranks, masks, strict=True)):
                keep = kept_count(rank.numel(), value) if expected is None else int(expected[index].sum())
                assert int(mask.sum()) == keep
                assert not (~mask).any() or rank[mask].min() >= rank[~mask].max() - 1e-6

    def test_less_often_is_still_the_highest_scores_of_that_moment(self, tmp_path: Path) -> None:
        config = StaticPruningConfig(sparsity=0.6, frequency=3, score_learning_rate=0.05, magnitude_prior=0.0)
        watch = watched(bert(), tmp_path, config)
        for score, mask in zip(watch.scores[5], watch.masks[5], strict=True):
            assert score[mask].min() >= score[~mask].max()
        assert all(torch.equal(*pair) for pair in zip(watch.masks[3], watch.masks[4], strict=True))

    def test_against_the_definition(self) -> None:
        batches = [BERT.batch(seed) for seed in range(8)]
        scores, masks = learnt_scores(bert(), batches, sparsity=0.6, begin=3, end=5, rate=0.02)
        model = bert()
        for parameter in model.classifier.parameters():
            parameter.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner = start_pruning(
            model, StaticPruningConfig(sparsity=0.6, begin=3, end=5, magnitude_prior=0.0), len(batches), optimizer
        )
        assert isinstance(pruner, StaticPruner)
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        names = [matrix.name for matrix in pruner.masks.matrices]
        found = dict(zip(names, pruner.scores.scores(pruner.masks), strict=True))
        assert_close(found, scores, 1e-4)
        for name, mask in zip(names, pruner.masks.masks, strict=True):
            assert float((mask == masks[name]).float().mean()) > 0.998
        pruner.finish()
        assert is_clean(model)


class TestOptimizers:
    def test_one_that_holds_everything_moves_nothing(self, tmp_path: Path) -> None:
        model = bert()
        before = weights(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        callback = PruningCallback(STATIC)
        trainer_of(model, tmp_path, callback, trainer_settings={"optimizers": (optimizer, None)}).train()
        assert_frozen(model, before)
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks

    def test_callback_added_later(self, tmp_path: Path) -> None:
        model = bert()
        before = weights(model)
        trainer = trainer_of(model, tmp_path)
        trainer.add_callback(PruningCallback(STATIC))
        trainer.train()
        assert_frozen(model, before)

    def test_model_init(self, tmp_path: Path) -> None:
        before = weights(bert())
        trainer = Trainer(
            model_init=lambda: bert(),
            args=arguments(tmp_path),
            train_dataset=rows(),
            callbacks=[PruningCallback(STATIC)],
        )
        trainer.train()
        assert_frozen(trainer.model, before)

    def test_frozen_before_the_trainer_makes_its_optimizer(self, tmp_path: Path) -> None:
        model = bert()
        trainer = trainer_of(model, tmp_path, PruningCallback(STATIC))
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert learning == {"classifier.weight", "classifier.bias"}
        trainer.train()
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_what_was_frozen_stays_frozen(self, tmp_path: Path) -> None:
        model = bert()
        model.bert.embeddings.requires_grad_(False)
        model.bert.encoder.layer[0].requires_grad_(False)
        train(model, tmp_path, STATIC)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {
            name
            for name, _ in model.named_parameters()
            if name.startswith(("bert.embeddings.", "bert.encoder.layer.0."))
        }

    def test_learning_rate_and_decay_of_the_trainer_are_for_the_head_alone(self, tmp_path: Path) -> None:
        runs = []
        for index, settings in enumerate(
            (
                {"learning_rate": 1e-3, "weight_decay": 0.0},
                {"learning_rate": 0.3, "weight_decay": 0.5, "lr_scheduler_type": "cosine", "warmup_steps": 3},
            )
        ):
            model = bert()
            model.classifier.requires_grad_(False)
            runs.append(watched(model, tmp_path / str(index), **settings).scores)
        for one, other in zip(*runs, strict=True):
            assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


class TestTrainerFeatures:
    def test_gradient_accumulation_is_a_larger_batch(self, tmp_path: Path) -> None:
        """Up to a factor: for some models a Trainer adds losses up instead of taking their mean."""
        config = StaticPruningConfig(sparsity=0.7, score_learning_rate=0.05, regularization=0.0, begin=4, end=5)
        settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        runs = []
        for name, more in (("large", {}), ("small", settings)):
            model = bert()
            model.classifier.requires_grad_(False)
            runs.append(watched(model, tmp_path / name, config, **more))
        assert len(runs[0].scores) == len(runs[1].scores) == 6
        for one, other in zip(runs[0].scores[3], runs[1].scores[3], strict=True):
            assert torch.allclose(one, other, atol=1e-4)

    def test_gradient_checkpointing(self, tmp_path: Path) -> None:
        plain = watched(bert(), tmp_path / "plain")
        checkpointed = watched(bert(), tmp_path / "checkpointed", gradient_checkpointing=True)
        for one, other in zip(plain.scores[-1], checkpointed.scores[-1], strict=True):
            assert torch.allclose(one, other, atol=1e-5)

    def test_mixed_precision(self, tmp_path: Path) -> None:
        model = bert()
        before = weights(model)
        watch = watched(model, tmp_path, bf16=True)
        assert all(score.dtype == torch.float32 and score.any() for score in watch.scores[-1])
        assert_frozen(model, before)

    @pytest.mark.parametrize("masking", ["local", "score"])
    def test_resumed_run_is_the_same_to_the_bit(self, tmp_path: Path, masking: str) -> None:
        config = StaticPruningConfig(sparsity=0.7, masking=masking, score_learning_rate=0.05)
        whole = bert(dropout=0.1)
        train(whole, tmp_path / "whole", config, save_strategy="steps", save_steps=3)
        again = bert(dropout=0.1)
        trainer = trainer_of(again, tmp_path / "whole", PruningCallback(config))
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        assert_same(weights(again), weights(whole))

    def test_the_gradient_scaler_gets_to_know_of_overflow_in_frozen_weights(self) -> None:
        model = bert()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        pruner = start_pruning(model, STATIC, STEPS + 1)  # the last step of a training has a rate of 0
        pruner.take_scaler(scaler)
        pruner.follow(optimizer)
        query = model.bert.encoder.layer[1].attention.self.query
        scales = []
        for step in range(STEPS):
            before = [score.clone() for score in pruner.scores.scores(pruner.masks)]
            factor = torch.inf if step == 2 else 1.0
            overflow = query.register_full_backward_hook(lambda _, inputs, __, factor=factor: (inputs[0] * factor,))
            scaler.scale(model(**BERT.batch(step)).loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            overflow.remove()
            scales.append(scaler.get_scale())
            after = pruner.scores.scores(pruner.masks)
            assert all(score.isfinite().all() for score in after)
            assert all(torch.equal(*pair) for pair in zip(before, after, strict=True)) == (step == 2)
        assert scales == [8.0, 8.0, 4.0, 4.0, 4.0, 4.0]
        pruner.abandon()

    @pytest.mark.parametrize("teacher", [None, "no such folder"])
    def test_failed_beginning_of_a_training_leaves_nothing_frozen(
        self, teacher: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = bert()
        trainer = trainer_of(model, tmp_path, PruningCallback(STATIC, teacher=teacher))
        monkeypatch.setattr(StaticPruner, "begin", Failing(StaticPruner.begin, 0, KeyboardInterrupt))
        with pytest.raises(OSError if teacher else KeyboardInterrupt):
            trainer.train()
        assert is_clean(model)
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_failed_training_leaves_the_model_as_it_was(self) -> None:
        model = bert()
        before = weights(model)
        pruner = start_pruning(model, STATIC, 4)
        pruner.abandon()
        assert_same(weights(model), before)
        assert is_clean(model)
        assert all(parameter.requires_grad for parameter in model.parameters())


class TestRefusals:
    def test_pattern_that_matches_nothing(self, tmp_path: Path) -> None:
        config = StaticPruningConfig(sparsity=0.5, target_modules=["qeury"])
        with pytest.raises(PruningError, match=r"'qeury' matches nothing\. Did you mean 'query'"):
            trainer_of(bert(), tmp_path, PruningCallback(config))

    def test_matrix_that_another_strategy_has(self) -> None:
        model = bert()
        other = start_pruning(model, MagnitudePruningConfig(sparsity=0.5), 4)
        with pytest.raises(PruningError, match="masked already"):
            start_pruning(model, STATIC, 4)
        other.abandon()
        assert is_clean(model)
        assert all(parameter.requires_grad for parameter in model.parameters())
