from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertModel

from hf_prune import (
    MetaPruner,
    MetaPrunerConfig,
    MetaTrainingArguments,
    PruningError,
    SingleShotPruningConfig,
    describe_model,
    prune_model,
    train_meta_pruner,
)
from hf_prune.gates import UnitGates
from hf_prune.scores import frozen
from hf_prune.strategies.single_shot.attention_maps import attention_maps
from hf_prune.strategies.single_shot.distribution_loss import paper_divergence
from hf_prune.strategies.single_shot.episode_loss import EpisodeLoss
from hf_prune.strategies.single_shot.episodes import EpisodeBatches, Episodes, seeded
from hf_prune.strategies.single_shot.head_scores import score_heads
from tests.small_models import case
from tests.strategies.single_shot.planted import HEADS, IMPORTANT, LAYERS, planted_model, texts

SMALL = {"episode_examples": 8, "episodes_per_update": 2, "scored_examples": 4, "validation_episodes": 4}
FAST = SMALL | {"optimizer": "adamw", "learning_rate": 0.005}


@pytest.fixture(scope="module")
def model() -> BertModel:
    return planted_model()


@pytest.fixture(scope="module")
def data() -> dict[str, list[Dataset]]:
    return {"single": [texts(60, 1)], "pair": [texts(50, 2), texts(40, 3)]}


def new_pruner(spread: float = 0.01) -> MetaPruner:
    torch.manual_seed(0)
    return MetaPruner(MetaPrunerConfig(map_size=16, initializer_range=spread))


def train(model: BertModel, data: Any, updates: int, output: Path | None = None, **changes: Any) -> MetaPruner:
    resume = changes.pop("resume", False)
    settings = FAST | {
        "episodes": 2 * updates,
        "eval_updates": 4,
        "output_dir": None if output is None else str(output),
    }
    arguments = MetaTrainingArguments(**settings | changes)
    return train_meta_pruner(model, data, arguments, pruner=new_pruner(), resume=resume)


def loss_of(model: BertModel, pruner: MetaPruner, **changes: Any) -> EpisodeLoss:
    arguments = MetaTrainingArguments(**FAST | {"episodes": 2} | changes)
    return EpisodeLoss(model, describe_model(model).attentions, pruner, EpisodeBatches(model), arguments)


def episodes_of(data: Any, **changes: Any) -> Episodes:
    settings = {"examples": 8, "validation_share": 0.1, "size_exponent": 0.2, "seed": 0}
    return Episodes(data, **settings | changes)


def gradients(pruner: MetaPruner) -> list[torch.Tensor]:
    return [parameter.grad for parameter in pruner.parameters() if parameter.grad is not None]


def largest_difference(one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


# --- what is learnt ---


@pytest.fixture(scope="module")
def trained(model: BertModel, data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole training."""
    folder = tmp_path_factory.mktemp("trained")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    pruner = train(model, data, 16, folder)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    loaded = MetaPruner.from_pretrained(folder)
    assert largest_difference(loaded.state_dict().values(), pruner.state_dict().values()) == 0
    return folder


def test_the_heads_that_matter_are_learnt_and_the_loss_falls(model: BertModel, trained: Path) -> None:
    history = json.loads((trained / "meta_training.json").read_text())
    assert [entry["update"] for entry in history] == [0, 4, 8, 12, 16]
    assert history[0]["validation_loss"] > 0.01
    assert min(entry["validation_loss"] for entry in history) < 1e-4
    assert history[-1]["training_loss"] < 0.7 * history[1]["training_loss"]
    blocks, unseen = describe_model(model).attentions, {"input_ids": torch.randint(5, 60, (4, 9))}
    for kind in ("single", "pair"):
        means = score_heads(model, blocks, MetaPruner.from_pretrained(trained).eval(), kind, [unseen]).means()
        assert [int(score.argmax()) for score in means] == list(IMPORTANT)


def test_a_pruner_finds_the_heads_that_matter_in_an_encoder_of_another_size(trained: Path, tmp_path: Path) -> None:
    """Trained on 2 layers of 4 heads, used on 3 layers of 6 and on another family with random weights."""
    config = SingleShotPruningConfig(pruner_name_or_path=str(trained), heads=0.2, input_type="single")
    other = planted_model(seed=5, hidden=96, heads=6, important=(5, 0, 2))
    result = prune_model(other, config, texts(12, 7))
    kept = [units for key, units in result.plan.kept.items() if key.endswith("attention")]
    assert kept == [(5,), (0,), (2,)]
    result.save_pretrained(tmp_path)
    batch = {"input_ids": torch.randint(5, 60, (2, 9))}
    loaded = BertModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch).last_hidden_state, other(**batch).last_hidden_state)
    distilled = case("distilbert", "bare").model()
    prune_model(distilled, config, texts(12, 7))
    assert [block.units for block in describe_model(distilled).attentions] == [1, 1, 1]


def test_the_pruner_with_the_lowest_validation_loss_is_kept(
    model: BertModel, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0])
    seen: list[torch.Tensor] = []

    def exact(self: EpisodeLoss, episode: object) -> torch.Tensor:
        seen.append(self._pruner.scorer.weight.detach().clone())
        return torch.tensor(next(losses))

    monkeypatch.setattr(EpisodeLoss, "exact", exact)
    pruner = train(model, data, 2, validation_episodes=1, eval_updates=1)
    assert torch.equal(pruner.scorer.weight, seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert not pruner.training


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    model: BertModel, data: Any, tmp_path: Path, optimizer: str
) -> None:
    settings = {"optimizer": optimizer, "eval_updates": 1}
    whole = train(model, data, 3, tmp_path / "whole", **settings)
    train(model, data, 1, tmp_path / "parts", **settings)
    resumed = train(model, data, 3, tmp_path / "parts", **settings, resume=True)
    assert largest_difference(whole.state_dict().values(), resumed.state_dict().values()) == 0
    histories = [json.loads((tmp_path / name / "meta_training.json").read_text()) for name in ("whole", "parts")]
    assert histories[0] == histories[1]
    assert {path.suffix for path in (tmp_path / "parts").iterdir()} == {".json", ".safetensors"}


def test_a_run_does_not_go_on_with_other_settings(model: BertModel, data: Any, tmp_path: Path) -> None:
    train(model, data, 1, tmp_path)
    with pytest.raises(PruningError, match=r"learning_rate=0\.005 \(now 0\.1\)"):
        train(model, data, 1, tmp_path, learning_rate=0.1, resume=True)
    with pytest.raises(PruningError, match="rows="):
        train(model, {"single": data["single"]}, 1, tmp_path, resume=True)
    (tmp_path / "meta_training.safetensors").write_bytes(b"nothing")
    with pytest.raises(PruningError, match="is damaged"):
        train(model, data, 1, tmp_path, resume=True)
    with pytest.raises(PruningError, match="resume=True needs output_dir"):
        train(model, data, 1, resume=True)


# --- the loss of an episode ---


def test_the_validation_loss_is_that_of_the_model_with_the_best_heads(model: BertModel, data: Any) -> None:
    pruner = new_pruner(0.3).eval()
    blocks = describe_model(model).attentions
    episode = episodes_of(data).validation(0)  # of single sentences
    batch = EpisodeBatches(model).whole(episode)
    found = loss_of(model, pruner, scored_examples=None, validation_episodes=1).exact(episode)
    masks = []
    for maps in attention_maps(model, batch, 16).values():
        scores = pruner(maps.flatten(0, 1)).scores[:, 0].reshape(len(maps), HEADS).mean(dim=0)
        masks.append((scores > scores.sort().values[1]).float())
    valid = batch["attention_mask"].unsqueeze(-1)
    dense = (model(**batch).last_hidden_state * valid).sum(1) / valid.sum(1)
    with UnitGates(model, blocks, masks):
        pruned = (model(**batch).last_hidden_state * valid).sum(1) / valid.sum(1)
    assert found.item() == pytest.approx(paper_divergence(dense, pruned).item(), rel=1e-4)


def test_the_gradient_reaches_the_pruner_alone_and_is_the_same_in_parts(model: BertModel, data: Any) -> None:
    pruner, episode = new_pruner(0.3).eval(), episodes_of(data).training(0)
    found = []
    for at_once in (8, 3):
        loss = loss_of(model, pruner, scored_examples=None, scored_at_once=at_once)
        with frozen(model):
            loss.drawn(episode, seeded(0)).backward()
        found.append([gradient.clone() for gradient in gradients(pruner)])
        pruner.zero_grad()
    assert len(found[0]) == len(list(pruner.parameters()))
    assert max(float(gradient.abs().max()) for gradient in found[0]) > 1e-6
    assert largest_difference(*found) < 1e-5 * max(float(gradient.abs().max()) for gradient in found[0])
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("heads", "kept"), [(0.5, 2), (0.25, 1), (0.1, 1), (1.0, 4)])
def test_every_layer_keeps_exactly_its_number(
    model: BertModel, data: Any, heads: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[list[float]] = []
    monkeypatch.setattr(
        EpisodeLoss, "_divergence", lambda self, episode, batch, values, rest: masks.extend(v.tolist() for v in values)
    )
    loss, episode = loss_of(model, new_pruner().eval(), heads=heads), episodes_of(data).training(0)
    for number in range(3):
        loss.drawn(episode, seeded(number))
    loss.exact(episode)
    assert all(sorted(mask) == [0.0] * (HEADS - kept) + [1.0] * kept for mask in masks)
    assert len(masks) == 4 * LAYERS


def test_some_layers_may_be_left_whole_in_each_episode(
    model: BertModel, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned: list[tuple[bool, ...]] = []
    monkeypatch.setattr(
        EpisodeLoss,
        "_divergence",
        lambda self, episode, batch, masks, rest: pruned.append(tuple(not bool(m.all()) for m in masks)),
    )
    loss, episode = loss_of(model, new_pruner().eval(), pruned_layers=0.5), episodes_of(data).training(0)
    for number in range(8):
        loss.drawn(episode, seeded(number))
    assert set(pruned) == {(True, False), (False, True)}


@pytest.mark.parametrize("vector", ["first_token", "pooler", "mean"])
def test_pairs_are_represented_as_asked(model: BertModel, data: Any, vector: str) -> None:
    episode = episodes_of(data).validation(1)
    assert episode.input_type == "pair"
    batch = EpisodeBatches(model).whole(episode)
    output, valid = model(**batch), batch["attention_mask"].unsqueeze(-1)
    expected = {
        "first_token": output.last_hidden_state[:, 0],
        "pooler": output.pooler_output,
        "mean": (output.last_hidden_state * valid).sum(1) / valid.sum(1),
    }[vector]
    found = loss_of(model, new_pruner(), pair_vector=vector)._vectors(batch, "pair")
    torch.testing.assert_close(found, expected)


def test_a_model_without_a_pooler_says_so(data: Any) -> None:
    model = BertModel(planted_model().config, add_pooling_layer=False)
    with pytest.raises(PruningError, match="BertModel returns nothing to represent a text by pooler"):
        train(model, data, 1, pair_vector="pooler")


def test_the_authors_loss_weighs_single_sentences_ten_times(model: BertModel, data: Any) -> None:
    pruner = new_pruner().eval()
    pruner.scorer.weight.data[1] = pruner.scorer.weight[0]  # both types of input get the same scores
    loss = loss_of(model, pruner, objective="authors", pair_vector="mean")
    single, pair = (loss.exact(episodes_of({kind: data["single"]}).validation(0)).item() for kind in ("single", "pair"))
    assert single == pytest.approx(10 * pair, rel=1e-5)
    assert pair > 0


def test_a_loss_that_is_not_finite_stops_the_training(
    model: BertModel, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpisodeLoss, "drawn", lambda *args: torch.tensor(float("nan")))
    with pytest.raises(PruningError, match=r"The loss of episode 0 \('(single|pair)'\) is nan"):
        train(model, data, 1)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_not_finite_stops_the_training(
    model: BertModel, data: Any, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    monkeypatch.setattr(EpisodeLoss, "exact", lambda *args: torch.tensor(loss))
    with pytest.raises(PruningError, match=f"The loss of validation episode 0 is {loss}"):
        train(model, data, 1)


# --- data and settings ---


def test_rows_for_validation_are_a_tenth_and_never_trained_on() -> None:
    rows = Dataset.from_dict({"input_ids": [[index] for index in range(100)]})
    episodes = episodes_of({"single": [rows]}, examples=20)
    trained = {ids[0] for number in range(40) for ids in episodes.training(number).rows["input_ids"]}
    validated = {ids[0] for number in range(8) for ids in episodes.validation(number).rows["input_ids"]}
    assert len(validated) == 10
    assert len(trained) == 90
    assert not trained & validated


def test_few_rows_for_validation_make_an_even_episode(model: BertModel) -> None:
    episodes = episodes_of({"single": [texts(50)]})
    episode = episodes.validation(0)
    assert len(episodes.corpora[0].validation) == 5
    assert len(episode.rows) == 4
    assert loss_of(model, new_pruner(), objective="authors").exact(episode) > 0


def test_episodes_follow_from_the_seed_and_their_number(data: Any) -> None:
    first, again, other = (episodes_of(data, seed=seed) for seed in (3, 3, 4))
    for make in ("training", "validation"):
        rows = [getattr(each, make)(5).rows["input_ids"] for each in (first, again, other)]
        assert rows[0] == rows[1] != rows[2]
    assert first.training(5).rows["input_ids"] != first.training(6).rows["input_ids"]


def test_data_sets_are_drawn_by_a_power_of_their_size() -> None:
    def rows(count: int) -> Dataset:
        return Dataset.from_dict({"input_ids": [[1]] * count})

    sizes = {"single": [rows(2000)], "pair": [rows(50)]}
    for exponent in (0.0, 0.5):
        episodes = episodes_of(sizes, examples=2, size_exponent=exponent)
        drawn = [episodes.training(number).input_type for number in range(200)]
        weights = [1800**exponent, 45**exponent]
        assert drawn.count("single") / 200 == pytest.approx(weights[0] / sum(weights), abs=0.08)


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({}, "needs data sets by type of input.*got none"),
        ({"single": []}, "got none"),
        ({"triple": [texts(40)]}, "got the type 'triple'"),
        ({"pair": [texts(40), texts(6)]}, r"Data set 1 \('pair'\) has 6 rows, 2 of them for validation: too few"),
    ],
)
def test_data_that_makes_no_episodes_is_refused(model: BertModel, datasets: Any, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        train(model, datasets, 1)


def test_rows_of_the_other_type_are_refused(model: BertModel) -> None:
    rows = texts(40)
    pairs = rows.add_column("token_type_ids", [[0] + [1] * (len(ids) - 1) for ids in rows["input_ids"]])
    with pytest.raises(PruningError, match="examples of a batch have a second text"):
        train(model, {"single": [pairs]}, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "mine"}, "objective='mine' is unknown; use one of paper, authors"),
        ({"heads": 0}, "heads=0 must lie in"),
        ({"pruned_layers": 1.5}, "pruned_layers=1.5"),
        ({"validation_share": 1.0}, "leaves nothing to train on"),
        ({"episodes": 9}, "episodes=9 must be a multiple of episodes_per_update=8"),
        ({"episodes": 0}, "episodes=0 must be a whole number of at least 1"),
        ({"episode_examples": 1}, "episode_examples=1 must be a whole number of at least 2"),
        ({"episode_examples": 7, "objective": "authors"}, "must be even"),
        ({"learning_rate": 0}, "learning_rate=0 must be a number above 0"),
        ({"size_exponent": -1}, "size_exponent=-1 must be a number of at least 0"),
        ({"scored_examples": 0}, "scored_examples=0"),
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        MetaTrainingArguments(**settings)
