from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertForMaskedLM, PreTrainedModel

from hf_prune import BinaryMaskMixin, PruningError
from hf_prune.anatomy.matrices import all_matrices
from hf_prune.gates import WeightMasks, add_weight_masks, remove_weight_masks, weight_masks_of
from tests.small_models import case

CASE = case("bert", "masked")
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
WORDS = "bert.embeddings.word_embeddings.weight"


def some_masks(
    model: PreTrainedModel, names: tuple[str, ...] = (QUERY, WORDS), seed: int = 0
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(model.get_parameter(name).shape, generator=generator) > 0.5 for name in names}


def test_masked_model_is_the_model_with_zeros_and_can_be_taken_back() -> None:
    model, batch = CASE.model(), CASE.batch()
    dense = copy.deepcopy(model)
    zeroed = copy.deepcopy(model)
    masks = some_masks(model)
    with torch.no_grad():
        for name, mask in masks.items():
            zeroed.get_parameter(name).mul_(mask)
    placed = add_weight_masks(model, masks)
    assert torch.equal(model(**batch).logits, zeroed(**batch).logits)
    assert not torch.equal(model(**batch).logits, dense(**batch).logits)
    assert model.state_dict().keys() == dense.state_dict().keys()
    assert placed.removed_count == sum(int((~mask).sum()) for mask in masks.values())
    with placed.lifted():
        assert torch.equal(model(**batch).logits, dense(**batch).logits)
    assert torch.equal(model(**batch).logits, zeroed(**batch).logits)
    remove_weight_masks(model)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), dense.parameters(), strict=True))
    assert not weight_masks_of(model)
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_gradient_is_that_of_weights_multiplied_by_masks() -> None:
    model, batch = CASE.model(), CASE.batch()
    masks = some_masks(model)
    literal = copy.deepcopy(model)
    raw = {name: literal.get_parameter(name).detach().clone().requires_grad_() for name in masks}
    masked = {name: raw[name] * masks[name] for name in masks}
    torch.func.functional_call(literal, masked, kwargs=batch).loss.backward()

    add_weight_masks(model, masks)
    model(**batch).loss.backward()
    for name in masks:
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert raw[name].grad is not None
        torch.testing.assert_close(gradient, raw[name].grad)
        assert not gradient[~masks[name]].any()


def test_tied_weights_stay_tied_and_are_masked_once() -> None:
    model = CASE.model()
    names = [matrix.name for matrix in all_matrices(model)]
    assert WORDS in names
    assert "cls.predictions.decoder.weight" not in names
    add_weight_masks(model, some_masks(model, (WORDS,)))
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert bool((model.cls.predictions.decoder.weight == 0).any())


def test_removed_weights_come_back_with_the_value_that_they_had() -> None:
    model, batch = CASE.model(), CASE.batch()
    first, second = some_masks(model, (QUERY,)), some_masks(model, (QUERY,), seed=1)
    parameter = model.get_parameter(QUERY)
    masks = add_weight_masks(model, first)
    dense = masks.raw(0).clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        masks.apply()
        assert not parameter[~first[QUERY]].any()
    trained = parameter.detach().clone()
    masks.set(list(second.values()))
    back = second[QUERY] & ~first[QUERY]
    assert torch.equal(parameter[back], dense[back])
    assert torch.equal(parameter[second[QUERY] & first[QUERY]], trained[second[QUERY] & first[QUERY]])
    assert not torch.equal(trained[first[QUERY]], dense[first[QUERY]])
    assert not parameter[~second[QUERY]].any()


def test_state_brings_everything_back() -> None:
    model = CASE.model()
    masks = add_weight_masks(model, some_masks(model))
    raw = [masks.raw(index) for index in range(2)]
    saved, weights = masks.state(), copy.deepcopy(model.state_dict())
    other = CASE.model()
    other.load_state_dict(weights)
    loaded = WeightMasks([matrix for matrix in all_matrices(other) if matrix.name in (QUERY, WORDS)])
    loaded.load_state(saved)
    for index, matrix in enumerate(loaded.matrices):
        place = [item.name for item in masks.matrices].index(matrix.name)
        assert torch.equal(loaded.masks[index], masks.masks[place])
        assert torch.equal(loaded.raw(index), raw[place])
    short = {**saved, f"{QUERY}.removed": saved[f"{QUERY}.removed"][1:]}
    with pytest.raises(PruningError, match="removed weights of"):
        loaded.load_state(short)
    with pytest.raises(PruningError, match="bytes"):
        loaded.load_state({**saved, f"{QUERY}.bits": saved[f"{QUERY}.bits"][1:]})


def test_deleting_frees_the_weights() -> None:
    model, batch = CASE.model(), CASE.batch()
    masks = add_weight_masks(model, some_masks(model, (QUERY,)))
    masks.delete()
    parameter = model.get_parameter(QUERY)
    gone = parameter == 0
    assert bool(gone.any())
    model(**batch).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    masks.apply()
    assert bool((parameter[gone] != 0).any())


def test_what_is_wrong_is_refused_before_anything_happens() -> None:
    model = CASE.model()
    before = model.get_parameter(QUERY).detach().clone()
    good = some_masks(model, (QUERY,))
    with pytest.raises(PruningError, match="no weight matrix"):
        add_weight_masks(model, {**good, "bert.encoder.layer.9.weight": good[QUERY]})
    with pytest.raises(PruningError, match="bool tensor of shape"):
        add_weight_masks(model, {QUERY: good[QUERY][:-1]})
    with pytest.raises(PruningError, match="bool tensor of shape"):
        add_weight_masks(model, {QUERY: good[QUERY].float()})
    assert torch.equal(model.get_parameter(QUERY), before)
    masks = add_weight_masks(model, good)
    with pytest.raises(PruningError, match="masked already"):
        add_weight_masks(model, good)
    with pytest.raises(PruningError, match="2 masks for 1"):
        masks.set([good[QUERY]] * 2)


class MaskedBert(BinaryMaskMixin, BertForMaskedLM):
    pass


def test_mixin_saves_an_ordinary_masked_model(tmp_path: Path) -> None:
    plain = CASE.model()
    model = MaskedBert(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    masks = some_masks(model)
    model.add_weight_masks(masks)
    assert model.weight_masks.keys() == masks.keys()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(loaded) is BertForMaskedLM
    batch = CASE.batch()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    model.remove_weight_masks()
    assert torch.equal(model(**batch).logits, plain(**batch).logits)
    assert model.weight_masks == {}


def test_masks_are_copies() -> None:
    model = CASE.model()
    given = some_masks(model)
    masks = add_weight_masks(model, given)
    count = masks.removed_count
    given[QUERY].zero_()
    masks.apply()
    assert masks.removed_count == count
    assert model.get_parameter(QUERY).count_nonzero() > 0
