"""What `describe_model` says about costs, against parameters and multiplications counted by other means."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    MambaConfig,
    PreTrainedModel,
)

from hf_prune import PruningError, UnsupportedModelError, count_flops, describe_model
from hf_prune.anatomy import Family, describe, linear_at, sublayers, supported_model_types
from hf_prune.surgery import PruningPlan, shrink_model
from tests.family_models import heads_of
from tests.small_models import FILTERS, HEADS, HIDDEN, LAYERS, Case, case

LENGTH = 9
ONE_MODEL_PER_LAYOUT = [case("bert", "classification"), case("distilbert", "classification")]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiplied(model: PreTrainedModel, length: int) -> int:
    """FLOPs of one sequence, counted by PyTorch while the model runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.full((1, length), 7), attention_mask=torch.ones(1, length, dtype=torch.long))
    return counter.get_total_flops()


@pytest.mark.parametrize("item", ONE_MODEL_PER_LAYOUT, ids=str)
def test_costs_of_a_unit_are_what_disappears_with_it(item: Case) -> None:
    for index in range(2 * LAYERS):
        model = item.model("eager")
        anatomy = describe_model(model)
        block = anatomy.blocks[index]
        before = parameters(model), multiplied(model, LENGTH)
        shrink_model(model, anatomy, PruningPlan({block.key: tuple(range(1, block.units))}))
        assert before[0] - parameters(model) == block.parameters_per_unit
        assert before[1] - multiplied(model, LENGTH) == 2 * block.macs_per_unit(LENGTH)


@pytest.mark.parametrize("item", ONE_MODEL_PER_LAYOUT, ids=str)
def test_count_flops_is_all_that_is_multiplied_in_the_layers(item: Case) -> None:
    model = item.model("eager")
    whole = multiplied(model, LENGTH)
    counted = count_flops(model, LENGTH)
    anatomy = describe_model(model)
    shrink_model(model, anatomy, PruningPlan({block.key: () for block in anatomy.blocks}))
    assert counted == whole - multiplied(model, LENGTH)
    assert count_flops(model, LENGTH) == 0
    with pytest.raises(PruningError, match="sequence_length=0"):
        count_flops(model, 0)


def test_blocks_of_bert_in_the_papers_numbers() -> None:
    anatomy = describe_model(BertForSequenceClassification(BertConfig(num_hidden_layers=1)))
    attention, feed_forward = anatomy.blocks
    # BERT-base at 128 tokens (Kwon et al. 2022, their reference count): multiply-accumulates of a head and a filter.
    assert (attention.units, attention.macs_per_unit(128)) == (12, 27_262_976)
    assert (feed_forward.units, feed_forward.macs_per_unit(128)) == (3072, 196_608)


def test_blocks_come_in_the_order_in_which_they_run() -> None:
    model = case("bert", "cross_attention").model()
    anatomy = describe_model(model)
    ran = []
    for block in anatomy.blocks:
        projection = linear_at(model.get_submodule(block.layer), block.output)
        projection.register_forward_hook(lambda *args, key=block.key: ran.append(key))
    with torch.no_grad():
        model(**case("bert", "cross_attention").batch())
    assert ran == [block.key for block in anatomy.blocks]
    assert ran[:3] == ["encoder.layer.0.attention", "encoder.layer.0.crossattention", "encoder.layer.0.intermediate"]


@pytest.mark.parametrize("model_type", supported_model_types())
def test_keys_do_not_depend_on_the_task_head(model_type: str) -> None:
    found = []
    for head in heads_of(model_type):
        with torch.device("meta"):
            model = head.model_class(head.config())
        found.append([block.key for block in describe_model(model).blocks])
    longest = max(found, key=len)
    for keys in found:  # some heads have only one of two stacks
        assert keys == [key for key in longest if key in keys]
        assert len(set(keys)) == len(keys) > 0


def test_as_many_filters_as_hidden_values_are_still_filters() -> None:
    """The norm after the feed-forward sublayer has as many values, but is none over the filters."""
    model = case("bert", "classification").model(intermediate_size=HIDDEN)
    assert [(block.units, block.unit) for block in describe_model(model).feed_forwards] == [(HIDDEN, "filters")] * 3


def test_lookup_and_text() -> None:
    anatomy = describe_model(case("bert", "classification").model())
    block = anatomy["encoder.layer.1.intermediate"]
    assert (block.kind, block.units, block.head_dim, block.heads_per_unit) == ("feed_forward", FILTERS, 0, 0)
    head = anatomy["encoder.layer.1.attention"]
    assert (head.kind, head.units, head.head_dim, head.heads_per_unit) == ("attention", HEADS, HIDDEN // HEADS, 1)
    assert anatomy.blocks_of_layer("bert.encoder.layer.1") == (head, block)
    assert "encoder.layer.1.attention: 4 heads of 8" in str(anatomy)
    with pytest.raises(KeyError, match=r"no block named 'layer\.9'"):
        anatomy["layer.9"]


def test_cross_attention_ahead_of_self_attention_does_not_take_its_place_in_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = Family(("bert",), (sublayers.BERT_CROSS, sublayers.BERT, sublayers.BERT_FFN))
    monkeypatch.setattr(describe, "family_of", lambda model_type: family)
    minima = {block.key: block.minimum for block in describe_model(case("bert", "cross_attention").model()).blocks}
    assert [key for key, minimum in minima.items() if minimum] == ["encoder.layer.0.attention"]


class TestRefusals:
    def test_unknown_family(self) -> None:
        model = AutoModel.from_config(MambaConfig(num_hidden_layers=1, hidden_size=8, vocab_size=20))
        with pytest.raises(UnsupportedModelError, match=r"'mamba'.*In the table: albert.*families\.py"):
            describe_model(model)

    def test_not_a_transformers_model(self) -> None:
        with pytest.raises(UnsupportedModelError, match="Linear is not a transformers PreTrainedModel"):
            describe_model(nn.Linear(2, 2))

    def test_peft_model_and_the_model_inside_it(self) -> None:
        wrapped = get_peft_model(case("bert", "classification").model(), LoraConfig(target_modules=["query"]))
        with pytest.raises(UnsupportedModelError, match="merge_and_unload"):
            describe_model(wrapped)
        with pytest.raises(UnsupportedModelError, match=r"self\.query is a .* Merge adapters"):
            describe_model(wrapped.get_base_model())

    def test_quantised_weights(self) -> None:
        model = case("bert", "classification").model()
        dense = model.bert.encoder.layer[1].intermediate.dense
        dense.weight = nn.Parameter(dense.weight.detach().to(torch.int8), requires_grad=False)
        with pytest.raises(UnsupportedModelError, match=r"layer\.1\.intermediate.*before quantising"):
            describe_model(model)

    def test_projections_that_disagree(self) -> None:
        model = case("bert", "classification").model()
        model.bert.encoder.layer[0].attention.self.value = nn.Linear(HIDDEN, HIDDEN - 8)
        with pytest.raises(UnsupportedModelError, match="disagree about the number of units"):
            describe_model(model)

    def test_supported_family_without_layers(self) -> None:
        model = case("bert", "classification").model()
        del model.bert.encoder
        with pytest.raises(UnsupportedModelError, match="nothing to prune"):
            describe_model(model)
