"""Inputs for timing: texts of exactly the size asked for, and whatever else a model reads."""

from __future__ import annotations

import pytest
import torch

from hf_prune import PruningError, measure_latency
from hf_prune.budget.latency import compare_latency, random_batch, time_in_turn
from hf_prune.budget.positions import check_length, position_count
from tests.small_models import case
from tests.task_models import CONTRASTIVE, TASK_MODELS, TaskModel

ALL = {**TASK_MODELS, **{f"{name}, both towers": item for name, item in CONTRASTIVE.items()}}


@pytest.mark.parametrize("task", ["classification", "choices", "causal"])
def test_texts_have_the_size_that_was_asked_for(task: str) -> None:
    model = case("bert", task).model()
    batch = random_batch(model, 3, 7)
    assert batch["input_ids"].shape == ((3, 1, 7) if task == "choices" else (3, 7))
    assert batch["attention_mask"].bool().all()
    assert batch["attention_mask"].shape == batch["input_ids"].shape
    assert torch.equal(batch["input_ids"], random_batch(model, 3, 7)["input_ids"])
    assert len(set(batch["input_ids"].flatten().tolist())) > 7


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_both_texts_of_an_encoder_decoder(name: str) -> None:
    batch = random_batch(TASK_MODELS[name].model(), 3, 7)
    assert batch["input_ids"].shape == batch["decoder_input_ids"].shape == (3, 7)


@pytest.mark.parametrize("item", ALL.values(), ids=list(ALL))
def test_every_kind_of_model_is_timed(item: TaskModel) -> None:
    model = item.model()
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs[module.main_input_name])), with_kwargs=True
    )
    assert measure_latency(model, 2, 9, repeats=2) > 0
    assert set(seen) == {2}
    assert len(seen) >= 3  # a warm-up and two repeats at least


def test_images_have_no_length() -> None:
    model = TASK_MODELS["vit"].model()
    assert position_count(model) is None
    check_length(model, 100_000)
    assert random_batch(model, 2, 100_000)["pixel_values"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(("name", "limit"), [("gpt2", 32), ("llama", 32), ("whisper", 16)])
def test_texts_longer_than_the_models_positions(name: str, limit: int) -> None:
    model = TASK_MODELS[name].model()
    assert position_count(model) == limit
    with pytest.raises(PruningError, match=f"sequence_length={limit + 1} exceeds the model's {limit} positions"):
        measure_latency(model, 1, limit + 1)


def test_positions_are_fewer_where_padding_takes_some() -> None:
    assert position_count(case("roberta", "classification").model()) == 48 - 2
    assert position_count(CONTRASTIVE["clip"].model()) == 16
    assert position_count(TASK_MODELS["t5"].model()) is None


@pytest.mark.parametrize("settings", [(0, 8, 1), (1, 0, 1), (1, 8, 0)])
def test_numbers_below_one(settings: tuple[int, int, int]) -> None:
    with pytest.raises(PruningError, match="must all be at least 1"):
        compare_latency([TASK_MODELS["gpt2"].model()], settings[0], settings[1], repeats=settings[2])


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_device_that_works_on_its_own_time_is_waited_for(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: events.append(f"wait for {device}"))
    time_in_turn([lambda: events.append("run")], 2, torch.device(device), prepare=lambda: events.append("prepare"))
    wait = [f"wait for {device}"] if device == "cuda" else []
    assert events == ["prepare", *wait, "run", *wait] * 3
