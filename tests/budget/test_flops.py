"""FLOPs against what PyTorch counts while models run, whole and cut: every stack at its own length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hf_prune import PruningError, count_flops, describe_model
from hf_prune.anatomy import ModelAnatomy
from hf_prune.anatomy.example_inputs import example_batch
from hf_prune.budget import Lengths, flops_per_unit, generation_flops_per_unit, lengths_of, total_flops
from hf_prune.surgery import PruningPlan, shrink_model
from tests.task_models import CONTRASTIVE, TASK_MODELS, TaskModel

LENGTH = 11
MODELS = [
    *(TASK_MODELS[name] for name in ("gpt2", "llama", "opt", "t5", "bart", "whisper", "speech_to_text", "vit", "clip")),
    *(TASK_MODELS[name] for name in ("wav2vec2, ctc sum", "albert")),
    *CONTRASTIVE.values(),
]


def multiplied(model: PreTrainedModel, **batch: Any) -> int:
    """FLOPs of a forward pass, counted by PyTorch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch)
    return counter.get_total_flops()


def eager(item: TaskModel) -> PreTrainedModel:
    model = item.model().requires_grad_(False)
    model.set_attn_implementation("eager")
    return model


def only_what_must_stay(anatomy: ModelAnatomy) -> PruningPlan:
    return PruningPlan({block.key: tuple(range(block.minimum)) for block in anatomy.blocks})


@pytest.mark.parametrize("item", MODELS, ids=str)
def test_what_a_cut_saves_is_what_is_no_longer_multiplied(item: TaskModel) -> None:
    model = eager(item)
    batch = example_batch(model, 1, LENGTH)
    before = multiplied(model, **batch), count_flops(model, LENGTH)
    anatomy = describe_model(model)
    lengths = lengths_of(model, anatomy, LENGTH)
    assert before[1] == sum(block.units * flops_per_unit(block, lengths) for block in anatomy.blocks)
    shrink_model(model, anatomy, only_what_must_stay(anatomy))
    assert before[0] - multiplied(model, **batch) == before[1] - count_flops(model, LENGTH) > 0


def test_attention_among_experts() -> None:
    model = eager(TASK_MODELS["mixtral"])
    batch = example_batch(model, 1, LENGTH)
    anatomy = describe_model(model)
    before = multiplied(model, **batch), count_flops(model, LENGTH)
    cut = {block.key: (1,) for block in anatomy.attentions}
    shrink_model(model, anatomy, PruningPlan(cut))
    assert before[0] - multiplied(model, **batch) == before[1] - count_flops(model, LENGTH) > 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart", "whisper"])
def test_a_generated_token_runs_the_decoder_only_and_reads_the_cache(name: str) -> None:
    model = eager(TASK_MODELS[name])
    batch = example_batch(model, 1, LENGTH)
    token = {"decoder_input_ids" if "decoder_input_ids" in batch else "input_ids": torch.tensor([[7]])}
    anatomy = describe_model(model)

    def of_second_token() -> int:
        output = model(**batch | {"use_cache": True})
        states = {"past_key_values": output.past_key_values, "use_cache": True}
        if "decoder_input_ids" in batch:
            states["encoder_outputs"] = (output.encoder_last_hidden_state,)
        output = model(**token, **states)
        return multiplied(model, **token, **states | {"past_key_values": output.past_key_values})

    def counted() -> int:
        blocks = describe_model(model)
        lengths = lengths_of(model, blocks, LENGTH)
        return sum(block.units * generation_flops_per_unit(block, lengths, 2) for block in blocks.blocks)

    with torch.no_grad():
        before = of_second_token(), counted()
        shrink_model(model, anatomy, only_what_must_stay(anatomy))
        assert before[0] - of_second_token() == before[1] - counted() > 0


@pytest.mark.parametrize(("name", "start"), [("llama", LENGTH), ("t5", 1)])
def test_generated_tokens_come_on_top(name: str, start: int) -> None:
    model = TASK_MODELS[name].model()
    anatomy = describe_model(model)
    lengths = lengths_of(model, anatomy, LENGTH, start)
    expected = total_flops(anatomy, lengths)
    for step in (1, 2, 3):
        expected += sum(block.units * generation_flops_per_unit(block, lengths, step) for block in anatomy.blocks)
    assert count_flops(model, LENGTH, generated_tokens=3) == expected
    # One more token attends to one more key in every self-attention.
    per_key = sum(
        4 * block.units * block.head_dim * block.heads_per_unit
        for block in anatomy.attentions
        if block.stack in lengths.generating and not lengths.of(block).cross
    )
    costs = [count_flops(model, LENGTH, generated_tokens=tokens) for tokens in (1, 2, 3)]
    assert (costs[2] - costs[1]) - (costs[1] - costs[0]) == per_key


def test_encoders_do_not_generate() -> None:
    for name in ("vit", "albert", "wav2vec2, ctc sum"):
        model = TASK_MODELS[name].model()
        with pytest.raises(PruningError, match="does not generate"):
            count_flops(model, LENGTH, generated_tokens=1)
    with pytest.raises(PruningError, match="generated_tokens=-1"):
        count_flops(TASK_MODELS["gpt2"].model(), LENGTH, generated_tokens=-1)


def test_a_number_is_what_every_block_sees() -> None:
    anatomy = describe_model(TASK_MODELS["t5"].model())
    assert total_flops(anatomy, LENGTH) == total_flops(anatomy, Lengths(LENGTH))
    assert all(flops_per_unit(block, LENGTH) == 2 * block.macs_per_unit(LENGTH) for block in anatomy.blocks)
