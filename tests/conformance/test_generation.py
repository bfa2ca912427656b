"""Pruned models that write text: the cache holds what it should, whatever the decoding strategy and the padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune.anatomy import supported_model_types
from tests.conformance.plans import prune
from tests.family_models import END, LENGTHS, PADDING, START, Head, generates, heads_of, main_head, sample
from tests.small_models import Batch

NEW_TOKENS = 6
WRITERS = [
    head
    for model_type in supported_model_types()
    for head in heads_of(model_type)
    if generates(head) and head.model_class.can_generate()
]
# GPT-Neo's local attention disagrees with itself on a static cache, dense as it is.
WITHOUT_STATIC_CACHE = {"gpt_neo"}


def pruned(head: Head) -> PreTrainedModel:
    model = head.model()
    prune(model, sample(model))
    return model


def prompts(model: PreTrainedModel) -> Batch:
    """What an encoder reads, or beginnings of texts, padded on the left."""
    batch = {name: value for name, value in sample(model).items() if "coder" not in name}
    if not model.config.is_encoder_decoder:
        rows = [row.roll(max(LENGTHS) - length) for row, length in zip(batch["input_ids"], LENGTHS, strict=True)]
        ids = torch.stack(rows)
        batch["input_ids"] = ids.where(ids != END, torch.tensor(START))
        batch["attention_mask"] = (ids != PADDING).long()
    return batch


def generate(model: PreTrainedModel, batch: Batch, **settings: Any) -> torch.Tensor:
    """Ids written under a fixed seed."""
    torch.manual_seed(5)
    if model.config.is_encoder_decoder:
        settings.setdefault("decoder_start_token_id", START)
    lengths = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    ids: torch.Tensor = model.generate(**batch, **lengths, **{"do_sample": False, "num_beams": 1, **settings})
    return ids


@pytest.mark.parametrize("head", WRITERS, ids=str)
def test_cache_makes_no_difference(head: Head) -> None:
    model = pruned(head)
    batch = prompts(model)
    for strategy in ({}, {"num_beams": 3}, {"do_sample": True}):
        expected = generate(model, batch, use_cache=False, **strategy)
        assert torch.equal(generate(model, batch, use_cache=True, **strategy), expected), strategy
    if head.model_type not in WITHOUT_STATIC_CACHE:
        static = generate(model, batch, cache_implementation="static")
        assert torch.equal(static, generate(model, batch, use_cache=False))


@pytest.mark.parametrize("head", WRITERS, ids=str)
def test_cached_logits_equal_uncached_ones(head: Head) -> None:
    model = pruned(head)
    batch = sample(model)
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    ids = batch[name][:, : min(LENGTHS) - 1]
    inputs = {key: value for key, value in batch.items() if "decoder" not in key and "input_ids" not in key}
    if model.config.is_encoder_decoder:
        inputs |= {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
    else:
        inputs = {}
    with torch.no_grad():
        whole = model(**inputs, **{name: ids}, use_cache=False).logits
        cache, steps = None, []
        for position in range(ids.shape[1]):
            step = model(**inputs, **{name: ids[:, position : position + 1]}, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            steps.append(step.logits)
    assert (torch.cat(steps, dim=1) - whole).abs().max() <= 1e-4 * max(1.0, whole.abs().max().item())


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3", "gemma2", "bloom", "falcon"])
def test_padding_on_the_left_makes_no_difference(model_type: str) -> None:
    model = pruned(main_head(model_type))
    batch = prompts(model)
    together = generate(model, batch)[:, -NEW_TOKENS:]
    for row, length in enumerate(LENGTHS):
        alone = {name: value[row : row + 1, -length:] for name, value in batch.items()}
        assert torch.equal(generate(model, alone)[0, -NEW_TOKENS:], together[row])


# Whisper wants keys of every layer from its assistant, so one that has lost whole attention blocks will not do.
ASSISTED = [(name, kind) for name in ("gpt2", "llama", "qwen3", "t5") for kind in ("dense", "pruned")]


@pytest.mark.parametrize(("model_type", "assistant_is"), [*ASSISTED, ("whisper", "dense")])
def test_assisted_generation_equals_greedy(model_type: str, assistant_is: str) -> None:
    head = main_head(model_type)
    model = pruned(head)
    assistant = head.model() if assistant_is == "dense" else pruned(head)
    batch = {name: value[:1] for name, value in sample(model).items() if "coder" not in name}
    if not model.config.is_encoder_decoder:
        batch = {name: value[:, :-1] for name, value in batch.items()}
    assert torch.equal(generate(model, batch, assistant_model=assistant), generate(model, batch, use_cache=False))


@pytest.mark.parametrize("head", WRITERS, ids=str)
def test_generating_changes_nothing(head: Head) -> None:
    model = pruned(head)
    batch = prompts(model)
    first = generate(model, batch)
    assert torch.equal(generate(model, batch), first)
    assert first.shape[-1] >= NEW_TOKENS
