"""Removal of whole layers by place, by what they do, and at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_prune import (
    AutoPruningConfig,
    InfeasibleBudgetError,
    LayerDropPruningConfig,
    PruningError,
    RandomPruningConfig,
    describe_model,
    prune_model,
)
from hf_prune.calibration import CalibrationData
from hf_prune.strategies.layer_drop.strategy import layer_influences
from tests.conformance.plans import difference, run
from tests.family_models import main_head
from tests.small_models import Batch, case, scale_weights
from tests.witness import Witness

BERT = case("bert", "classification")


def bert(layers: int = 6) -> PreTrainedModel:
    return BERT.model(num_hidden_layers=layers)


def t5() -> PreTrainedModel:
    sizes = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_heads": 4, "num_layers": 4}
    model = T5ForConditionalGeneration(T5Config(**sizes, num_decoder_layers=4, decoder_start_token_id=0)).eval()
    scale_weights(model)
    return model


def removed(model: PreTrainedModel, config: Any, data: Any = None) -> list[int]:
    plan = prune_model(model, config, data).plan
    assert not plan.kept
    return [int(name.rpartition(".")[2]) for name in plan.removed_layers]


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ({"layers": 4}, [4, 5]),
        ({"layers": 0.5, "which": "top"}, [3, 4, 5]),
        ({"layers": 0.5, "which": "bottom"}, [0, 1, 2]),
        ({"layers": 0.5, "which": "alternate"}, [1, 3, 5]),
        ({"layers": 0.7, "which": "middle"}, [2, 3]),
        ({"layers": 1, "which": "middle"}, [1, 2, 3, 4, 5]),
        ({"layers": 1.0}, []),
        ({"layers": 2.0}, [2, 3, 4, 5]),
    ],
)
def test_layers_by_place(settings: dict[str, Any], places: list[int]) -> None:
    assert removed(bert(), LayerDropPruningConfig(**settings)) == places


def test_the_layers_that_stay_are_those_of_a_smaller_model(batches: list[Batch], tmp_path: Path) -> None:
    model = bert()
    kept = [model.bert.encoder.layer[place] for place in (0, 2, 4)]
    by_hand = BertForSequenceClassification(BERT.config(num_hidden_layers=3)).eval()
    state = {name: value for name, value in model.state_dict().items() if ".layer." not in name}
    for place, layer in enumerate(kept):
        state |= {f"bert.encoder.layer.{place}.{name}": value for name, value in layer.state_dict().items()}
    by_hand.load_state_dict(state)
    result = prune_model(model, LayerDropPruningConfig(layers=0.5, which="alternate"))
    assert model.config.num_hidden_layers == 3
    assert result.report.pruned.flops == result.report.dense.flops / 2
    assert difference(run(model, batches[0]), run(by_hand, batches[0])) <= 1e-6
    result.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert difference(run(loaded, batches[0]), run(model, batches[0])) == 0
    assert AutoPruningConfig.from_pretrained(tmp_path) == LayerDropPruningConfig(layers=0.5, which="alternate")


def test_influence_is_the_mean_over_positions_that_are_no_padding(batches: list[Batch]) -> None:
    """From the hidden states that the model itself hands out."""
    model = BERT.model()
    totals, count = torch.zeros(3, dtype=torch.float64), 0
    for batch in batches:
        hidden = model(**batch, output_hidden_states=True).hidden_states
        for row, position in batch["attention_mask"].nonzero().tolist():
            count += 1
            for layer in range(3):
                one, other = (hidden[place][row, position].detach().double() for place in (layer, layer + 1))
                totals[layer] += 1 - functional.cosine_similarity(one, other, dim=0)
    found = layer_influences(model, describe_model(model), CalibrationData(batches, model))
    assert list(found) == [f"encoder.layer.{layer}" for layer in range(3)]
    assert list(found.values()) == pytest.approx((totals / count).tolist(), abs=1e-6)


def test_a_layer_that_does_nothing_goes_first(batches: list[Batch]) -> None:
    model = main_head("llama").model(num_hidden_layers=4)
    with torch.no_grad():
        for projection in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
            projection.weight.mul_(1e-3)
    data = [{"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]} for batch in batches]
    assert removed(model, LayerDropPruningConfig(layers=3, which="score"), data) == [1]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]


def test_every_list_of_layers_keeps_its_share_and_the_first_of_a_t5_stays() -> None:
    plan = prune_model(t5(), LayerDropPruningConfig(layers=0.5, which="bottom")).plan
    assert plan.removed_layers == ("encoder.block.1", "encoder.block.2", "decoder.block.1", "decoder.block.2")
    only = LayerDropPruningConfig(layers=2, exclude_modules=["encoder.*"])
    assert prune_model(t5(), only).plan.removed_layers == ("decoder.block.2", "decoder.block.3")


def test_layers_with_a_block_that_must_stay_are_not_counted() -> None:
    config = LayerDropPruningConfig(
        layers=0.5, which="bottom", exclude_modules=["layer.0.attention", "layer.1.intermediate"]
    )
    assert removed(bert(), config) == [2, 3]


class TestAtRandom:
    def test_the_seed_decides(self) -> None:
        drawn = [removed(bert(), RandomPruningConfig(layers=3, seed=seed)) for seed in (1, 1, 2, 3)]
        assert drawn[0] == drawn[1] == sorted(drawn[0])
        assert len({tuple(places) for places in drawn}) > 1
        assert all(len(places) == 3 for places in drawn)

    def test_every_list_of_layers_is_drawn_from(self) -> None:
        plan = prune_model(t5(), RandomPruningConfig(layers=0.5)).plan
        assert sorted(name.partition(".")[0] for name in plan.removed_layers) == ["decoder"] * 2 + ["encoder"] * 2


@pytest.mark.parametrize("config_class", [LayerDropPruningConfig, RandomPruningConfig])
@pytest.mark.parametrize("layers", [0, -1, 0.0, 2.5, 1.5, True, "3", float("nan"), float("inf")])
def test_numbers_of_layers_that_are_none(config_class: Any, layers: Any) -> None:
    with pytest.raises(PruningError, match=r"layers=.* must be a fraction in"):
        config_class(layers=layers)


def test_bad_settings() -> None:
    with pytest.raises(PruningError, match="LayerDropPruningConfig needs layers="):
        LayerDropPruningConfig()
    with pytest.raises(PruningError, match="which='last' is unknown; use one of top, bottom, alternate, middle, score"):
        LayerDropPruningConfig(layers=2, which="last")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"layers": 9}, PruningError, "layers=9 is more than the 6 layers"),
        ({"layers": 0.1}, InfeasibleBudgetError, r"give at least 0\.1667"),
        ({"layers": 3, "which": "score"}, PruningError, "Calibration data is needed"),
        ({"layers": 3, "exclude_modules": ["attention"]}, PruningError, "no layers to choose from"),
    ],
)
def test_what_cannot_be_done_touches_nothing(settings: dict[str, Any], error: type, message: str) -> None:
    model = bert().train()
    witness = Witness(model)
    with pytest.raises(error, match=message):
        prune_model(model, LayerDropPruningConfig(**settings))
    witness.check()


def test_layers_that_run_more_than_once_cannot_go() -> None:
    sizes = {"vocab_size": 61, "embedding_size": 16, "hidden_size": 32, "num_attention_heads": 4}
    model = AlbertModel(AlbertConfig(**sizes, intermediate_size=40, num_hidden_layers=2, inner_group_num=2))
    with pytest.raises(InfeasibleBudgetError, match=r"only 0 of 2 layers can go\. .*runs 2 times") as caught:
        prune_model(model, LayerDropPruningConfig(layers=0.5))
    assert caught.value.smallest == 1


def test_hidden_states_that_are_not_finite(batches: list[Batch]) -> None:
    model = bert(3)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias[0] = torch.inf
    with pytest.raises(PruningError, match=r"hidden states of bert\.encoder\.layer\.1 are not finite"):
        prune_model(model, LayerDropPruningConfig(layers=2, which="score"), batches)
    assert model.config.num_hidden_layers == len(model.bert.encoder.layer) == 3


def test_a_layer_that_changes_the_shape_of_its_hidden_states(batches: list[Batch], monkeypatch: Any) -> None:
    model = BERT.model()
    layer = model.bert.encoder.layer[1]
    monkeypatch.setattr(layer, "forward", lambda hidden, *args, **kwargs: hidden[:, :, :16])
    with pytest.raises(PruningError, match=r"encoder\.layer\.1 changes the shape"):
        layer_influences(model, describe_model(bert(3)), CalibrationData(batches, model))
