"""A teacher in a Trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_prune import PruningCallback, PruningError
from tests.training.runs import (
    BERT,
    MAGNITUDE,
    assert_exactly_pruned,
    bert,
    history,
    is_clean,
    rows,
    trainer_of,
    weights,
)


def test_a_pruned_model_learns_from_its_teacher(tmp_path: Path) -> None:
    alone, taught, named = bert(), bert(), bert()
    teacher = BERT.model(seed=7)
    before = {name: value.clone() for name, value in weights(teacher).items()}
    teacher.save_pretrained(tmp_path / "teacher")
    losses = []
    for model, given in ((alone, None), (taught, teacher), (named, tmp_path / "teacher")):
        callback = PruningCallback(MAGNITUDE, teacher=given, temperature=3.0, teacher_weight=0.9)
        trainer = trainer_of(model, tmp_path / "out", callback, logging_steps=1, learning_rate=1e-2)
        trainer.train()
        losses.append([row["loss"] for row in history(trainer)])
        assert_exactly_pruned(model)
        assert not model._forward_hooks
    assert losses[1] == losses[2] != losses[0]
    assert all(torch.equal(value, weights(taught)[name]) for name, value in weights(named).items())
    assert all(torch.equal(value, before[name]) for name, value in weights(teacher).items())

    batch = BERT.batch(lengths=(9,) * len(rows()))

    def distance(model: torch.nn.Module) -> float:
        with torch.no_grad():
            wanted = teacher(**batch).logits.softmax(-1)
            return float((model.eval()(**batch).logits.softmax(-1) - wanted).abs().mean())

    assert distance(taught) < distance(alone)


def test_what_is_out_of_range_is_refused_at_once() -> None:
    with pytest.raises(PruningError, match=r"temperature=-1"):
        PruningCallback(MAGNITUDE, teacher=bert(), temperature=-1)
    with pytest.raises(PruningError, match=r"weight=0"):
        PruningCallback(MAGNITUDE, teacher=bert(), teacher_weight=0)


def test_a_teacher_that_cannot_be_loaded_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = bert()
    before = {name: value.clone() for name, value in weights(model).items()}
    callback = PruningCallback(replace(MAGNITUDE, begin=0, end=0), teacher=tmp_path / "none")
    with pytest.raises(OSError, match="none"):
        trainer_of(model, tmp_path / "out", callback).train()
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert is_clean(model)
    assert not model._forward_hooks
