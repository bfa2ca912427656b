"""One backward pass per batch gives what one example at a time gives, beyond text classification."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from transformers import GPT2LMHeadModel

from hf_prune import PruningError, describe_model
from hf_prune.anatomy import Block
from hf_prune.scores import fisher_gradients, iterate_gradients
from tests.scores.one_at_a_time import gradients_one_at_a_time, single_examples
from tests.task_models import CONTRASTIVE, TASK_MODELS, TaskModel, text


def gated_by_hooks(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """Blocks whose output projection is a module (those of experts are not)."""
    return tuple(block for block in blocks if block.output.expert is None)


@pytest.mark.parametrize("item", TASK_MODELS.values(), ids=str)
def test_equal_to_one_example_at_a_time(item: TaskModel) -> None:
    model, batch = item.model(), item.example()
    anatomy = describe_model(model)
    blocks = gated_by_hooks(anatomy.blocks)
    assert {block.kind for block in anatomy.blocks} == {"attention", "feed_forward"}
    [found] = iterate_gradients(model, replace(anatomy, blocks=blocks), [batch])
    expected = gradients_one_at_a_time(model, batch, blocks)
    for block, one, other in zip(blocks, found, expected, strict=True):
        scale = other.abs().max()
        assert scale > 1e-4, block.key
        assert (one - other).abs().max() <= 1e-5 * scale, block.key


def test_filters_of_experts() -> None:
    """A gate's gradient is Σ weight × the weight's gradient over what it multiplies."""
    item = TASK_MODELS["mixtral"]
    model, batch = item.model(), item.example()
    anatomy = describe_model(model)
    experts = [block for block in anatomy.blocks if block.output.expert is not None]
    assert len(experts) == 8
    [found] = iterate_gradients(model, replace(anatomy, blocks=tuple(experts)), [batch])
    for index, example in enumerate(single_examples(batch)):
        model.zero_grad()
        model(**example).loss.backward()
        for block, gradients in zip(experts, found, strict=True):
            weight = model.get_submodule(block.layer).get_parameter(block.output.path)
            expected = (weight.detach() * weight.grad)[block.output.expert].sum(0)
            assert torch.allclose(gradients[index].double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("return_loss", [True, False])
@pytest.mark.parametrize("item", CONTRASTIVE.values(), ids=str)
def test_contrastive_losses_are_refused(item: TaskModel, return_loss: bool) -> None:
    batch = item.example() | ({"return_loss": True} if return_loss else {})
    with pytest.raises(PruningError, match=r"compares the examples of a batch with each other.*importance='magnitude'"):
        fisher_gradients(item.model(), [batch])


def test_losses_that_balance_experts_are_refused_until_they_are_switched_off() -> None:
    item = TASK_MODELS["mixtral"]
    model = item.model(output_router_logits=True, router_aux_loss_coef=0.01)
    with pytest.raises(PruningError, match=r"balances its experts .* model\.config\.output_router_logits = False"):
        fisher_gradients(model, [item.example()])
    model.config.output_router_logits = False
    assert fisher_gradients(model, [item.example()])["heads"][0].any()


def test_packed_patches_have_no_rows_for_each_example() -> None:
    item = TASK_MODELS["gpt2"]
    batch = item.example() | {"pixel_values": torch.zeros(7, 12)}
    with pytest.raises(PruningError, match=r"pixel_values of shape \(7, 12\) has no rows for each of the 3 examples"):
        fisher_gradients(item.model(), [batch])


def test_positions_may_be_shared_by_all_examples() -> None:
    item = TASK_MODELS["gpt2"]
    model, batch = item.model(), item.example()
    shared = batch | {"position_ids": torch.arange(batch["input_ids"].shape[1])[None]}
    for one, other in zip(
        fisher_gradients(model, [shared])["filters"], fisher_gradients(model, [batch])["filters"], strict=True
    ):
        assert torch.allclose(one, other)


def test_blocks_that_the_loss_does_not_reach_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class FirstLayerOnly(GPT2LMHeadModel):
        def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
            whole, self.transformer.h = self.transformer.h, self.transformer.h[:1]
            try:
                return super().forward(input_ids, attention_mask=attention_mask, labels=labels, use_cache=False)
            finally:
                self.transformer.h = whole

    model = FirstLayerOnly(TASK_MODELS["gpt2"].model().config).eval()
    with caplog.at_level(logging.WARNING, logger="hf_prune"):
        gradients = fisher_gradients(model, [text()])
    assert "depends on no unit of h.1.attn, h.1.mlp" in caplog.text
    assert gradients["heads"][0].any()
    assert not gradients["heads"][1].any()
    assert not gradients["filters"][1].any()
