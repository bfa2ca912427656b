"""Generation with pruned decoders: the cache has to know how long the text already is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import FisherPruningConfig, PruningError, describe_model, prune_model
from hf_prune.surgery import PruningPlan, apply_plan
from tests.conformance.plans import prune, run
from tests.small_models import CASES, Case

DECODERS = [case for case in CASES if case.task == "causal"]
NEW_TOKENS = 12


def generate(model: PreTrainedModel, ids: torch.Tensor, cached: bool, beams: int = 1) -> torch.Tensor:
    """Generated ids; sampling is off, so caching must not matter."""
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=beams,
        use_cache=cached,
    )


@pytest.mark.parametrize("case", DECODERS, ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cached_logits_equal_uncached_ones(case: Case, attention: str) -> None:
    model = case.model(attention)
    prune(model, case.batch())
    assert [block.units for block in describe_model(model).attentions] == [2, 0, 4]
    ids = case.batch(lengths=(9, 9))["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        cache, steps = None, []
        for position in range(ids.shape[1]):
            step = model(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            steps.append(step.logits)
    assert (torch.cat(steps, dim=1) - whole).abs().max() <= 1e-4


@pytest.mark.parametrize("case", DECODERS, ids=str)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same_with_and_without_cache(case: Case, beams: int) -> None:
    model = case.model()
    prune(model, case.batch())
    ids = case.batch(lengths=(5, 5))["input_ids"]
    cached = generate(model, ids, cached=True, beams=beams)
    assert cached.shape == (2, 5 + NEW_TOKENS)
    assert torch.equal(cached, generate(model, ids, cached=False, beams=beams))


@pytest.mark.parametrize("case", DECODERS, ids=str)
def test_first_layer_keeps_a_head(case: Case, tmp_path: Path) -> None:
    model = case.model()
    anatomy = describe_model(model)
    assert [block.minimum for block in anatomy.attentions] == [1, 0, 0]
    with pytest.raises(PruningError, match="at least 1 must stay"):
        apply_plan(model, anatomy, PruningPlan({anatomy.attentions[0].key: ()}))

    # Filters only cost a little here: the smallest budget leaves no head but the one that has to stay.
    prune_model(model, FisherPruningConfig(flops=0.06, latency_batch_size=1), [case.batch()])
    heads = [block.units for block in describe_model(model).attentions]
    assert heads[0] >= 1
    assert sum(heads) <= 2
    model.save_pretrained(tmp_path)
    loaded = case.auto_class.from_pretrained(tmp_path)
    ids = case.batch(lengths=(5, 5))["input_ids"]
    assert torch.equal(generate(loaded, ids, cached=True), generate(model, ids, cached=False))


def test_encoders_may_lose_every_head() -> None:
    encoders = [case for case in CASES if case.task == "masked"]
    for case in encoders:
        model, batch = case.model(), case.batch()
        anatomy = describe_model(model)
        apply_plan(model, anatomy, PruningPlan({block.key: () for block in anatomy.blocks}), batch=batch)
        assert all(output.isfinite().all() for output in run(model, batch))
