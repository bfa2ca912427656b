from __future__ import annotations

import weakref

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from hf_prune import PruningError, UnsupportedModelError, describe_model
from hf_prune.anatomy.example_inputs import example_batch
from hf_prune.strategies.single_shot import attention_maps
from hf_prune.strategies.single_shot.attention_maps import each_attention_map, eager_attention, fit_maps
from tests.family_models import EVERY_HEAD
from tests.small_models import LAYERS, case

BERT = case("bert", "classification")


def bare(model_type: str) -> PreTrainedModel:
    return next(head for head in EVERY_HEAD if head.model_type == model_type).model()


def test_maps_are_the_probabilities_of_eager_attention_without_padding() -> None:
    batch = BERT.batch()
    eager = BERT.model("eager")(**batch, output_attentions=True).attentions
    maps = attention_maps(BERT.model("sdpa"), batch, size=16)
    assert len(maps) == LAYERS
    for found, expected in zip(maps.values(), eager, strict=True):
        for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
            torch.testing.assert_close(found[row, :, :length, :length], expected[row, :, :length, :length])
            assert not found[row, :, length:].any()
            assert not found[row, :, :, length:].any()


@pytest.mark.parametrize("side", ["right", "left"])
def test_maps_do_not_depend_on_padding(side: str) -> None:
    words, model = torch.randint(5, 60, (1, 6)), BERT.model()
    width = (0, 4) if side == "right" else (4, 0)
    alone = {"input_ids": words, "attention_mask": torch.ones_like(words), "position_ids": torch.arange(6)[None]}
    padded = {name: functional.pad(value, width) for name, value in alone.items()}
    found, expected = attention_maps(model, padded, 16), attention_maps(model, alone, 16)
    for key, maps in expected.items():
        torch.testing.assert_close(found[key], maps, atol=1e-5, rtol=0)


def test_long_maps_are_averaged_down_and_short_ones_filled_up() -> None:
    maps = torch.rand(2, 3, 32, 32)
    valid = torch.ones(2, 32, dtype=torch.bool)
    valid[1, 10:] = False
    fitted = fit_maps(maps, valid, valid, size=16)
    expected = torch.stack([maps[0, :, y::2, x::2] for y in (0, 1) for x in (0, 1)]).mean(dim=0)
    torch.testing.assert_close(fitted[0], expected)
    assert torch.equal(fitted[1, :, :10, :10], maps[1, :, :10, :10])
    assert fitted[1].count_nonzero() == maps[1, :, :10, :10].count_nonzero()


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model = BERT.model("sdpa").train()
    batch = BERT.batch()
    seen: list[str] = []

    def stop(block: object, maps: torch.Tensor) -> None:
        seen.append(model.config._attn_implementation)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        each_attention_map(model, describe_model(model).attentions, batch, 16, stop)
    attention_maps(model, batch, 16)
    assert seen == ["eager"]
    assert model.config._attn_implementation == "sdpa"
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_every_part_of_a_model_gets_its_own_attention_back() -> None:
    model = bare("clip")
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    names = [part._attn_implementation for part in (model.config, model.config.text_config, model.config.vision_config)]
    with eager_attention(model):
        assert model.config.vision_config._attn_implementation == "eager"
    assert names == [
        part._attn_implementation for part in (model.config, model.config.text_config, model.config.vision_config)
    ]
    assert names[1:] == ["eager", "sdpa"]


@pytest.mark.parametrize("model_type", ["albert", "deberta-v2", "distilbert", "falcon", "llama", "mpnet", "vit"])
def test_other_families_show_their_attention(model_type: str) -> None:
    model = bare(model_type)
    anatomy = describe_model(model)
    maps = attention_maps(model, example_batch(model, rows=2, length=7), size=16)
    assert list(maps) == [block.key for block in anatomy.attentions]
    for block in anatomy.attentions:
        found = maps[block.key]
        assert found.shape == (2, block.units * block.heads_per_unit, 16, 16)
        torch.testing.assert_close(found.sum(-1).amax(-1), torch.ones(found.shape[:2]), atol=1e-4, rtol=0)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    model = bare("bart")
    with pytest.raises(UnsupportedModelError, match="BartModel has an encoder and a decoder"):
        attention_maps(model, {"input_ids": torch.ones(1, 3, dtype=torch.long)})


def test_attention_that_is_not_shown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BERT.model()
    core = model.bert.encoder.layer[1].attention.self
    forward = core.forward

    def hide(*args: object, **kwargs: object) -> tuple[torch.Tensor, None]:
        return forward(*args, **kwargs)[0], None

    monkeypatch.setattr(core, "forward", hide)
    with pytest.raises(PruningError, match=r"encoder\.layer\.1\.attention of .* shows no attention probabilities"):
        attention_maps(model, BERT.batch())


def test_maps_of_one_block_are_gone_before_the_next_ones_are_made() -> None:
    model = BERT.model()
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def receive(block: object, maps: torch.Tensor) -> None:
        alive.append(sum(reference() is not None for reference in made))
        made.append(weakref.ref(maps))

    each_attention_map(model, describe_model(model).attentions, BERT.batch(), 16, receive)
    assert alive == [0] * LAYERS
