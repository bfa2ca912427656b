from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig

from hf_prune import MetaPruner, MetaPrunerConfig, PruningError, describe_model
from hf_prune.calibration import Batch
from hf_prune.strategies.single_shot import attention_maps
from hf_prune.strategies.single_shot.head_scores import ScoreSums, check_input_type, score_heads
from tests.family_models import EVERY_HEAD, main_head
from tests.small_models import case

BERT = case("bert", "bare")


@pytest.fixture(scope="module")
def pruner() -> MetaPruner:
    torch.manual_seed(0)
    return MetaPruner(MetaPrunerConfig(map_size=16, initializer_range=1.0)).eval()


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    return {name: value[rows] for name, value in batch.items()}


def test_every_example_counts_the_same_whatever_its_batch(pruner: MetaPruner) -> None:
    model, batch = BERT.model(), BERT.batch()
    blocks = describe_model(model).attentions
    whole = score_heads(model, blocks, pruner, "pair", [batch]).means()
    parts = score_heads(model, blocks, pruner, "pair", [rows_of(batch, [3, 0, 1]), rows_of(batch, [2])]).means()
    for block, found, other in zip(blocks, whole, parts, strict=True):
        maps = attention_maps(model, batch, 16)[block.key]
        expected = [[pruner(maps[row, head][None]).scores[0, 1].item() for head in range(4)] for row in range(4)]
        torch.testing.assert_close(found, torch.tensor(expected).mean(dim=0))
        torch.testing.assert_close(other, found)
    assert torch.cat(whole).std() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_do_not_depend_on_the_order_of_examples_nor_on_padding(pruner: MetaPruner, side: str) -> None:
    """Examples one by one without padding, and backwards in one batch with more of it than any needs."""
    model, batch = BERT.model(), BERT.batch()
    blocks = describe_model(model).attentions
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    alone = [{"input_ids": ids[:length][None]} for ids, length in zip(batch["input_ids"], lengths, strict=True)]
    padded: list[dict[str, torch.Tensor]] = []
    for length, example in zip(lengths, alone, strict=True):
        room = (20 - length, 0) if side == "left" else (0, 20 - length)
        row = example | {"attention_mask": torch.ones(1, length), "position_ids": torch.arange(length)[None]}
        padded.insert(0, {name: functional.pad(value, room) for name, value in row.items()})
    together = {name: torch.cat([row[name] for row in padded]) for name in padded[0]}
    expected = score_heads(model, blocks, pruner, "single", alone).means()
    for found, other in zip(score_heads(model, blocks, pruner, "single", [together]).means(), expected, strict=True):
        torch.testing.assert_close(found, other, atol=1e-5, rtol=0)
    assert torch.cat(expected).std() > 1e-3


def test_heads_of_a_group_need_not_be_next_to_each_other() -> None:
    model = main_head("codegen").model()
    [block, *_] = describe_model(model).attentions
    heads = block.units * block.heads_per_unit
    owners = block.columns.reshape(heads, -1)[:, 0].tolist()
    assert owners != sorted(owners)
    sums = ScoreSums([block], torch.device("cpu"))
    scores = torch.randn(3, heads)
    sums.add(block, scores)
    means = scores.mean(dim=0).tolist()
    for unit, found in enumerate(sums.means()[0].tolist()):
        own = [mean for mean, owner in zip(means, owners, strict=True) if owner == unit]
        assert len(own) == block.heads_per_unit
        assert found == pytest.approx(sum(own) / len(own), abs=1e-6)


def test_a_group_of_heads_has_their_mean_score(pruner: MetaPruner) -> None:
    model = main_head("llama").model(num_attention_heads=4, num_key_value_heads=2)
    blocks, batch = describe_model(model).attentions, {"input_ids": torch.arange(5, 19).reshape(2, 7)}
    for block, found in zip(blocks, score_heads(model, blocks, pruner, "single", [batch]).means(), strict=True):
        per_head = pruner.scores(attention_maps(model, batch, 16)[block.key], "single").mean(dim=0)
        torch.testing.assert_close(found, torch.stack([per_head[:2].mean(), per_head[2:].mean()]))


def test_layers_that_share_weights_are_averaged_over_their_runs(pruner: MetaPruner) -> None:
    model = next(head for head in EVERY_HEAD if head.model_type == "albert").model()
    (block,) = describe_model(model).attentions
    found = score_heads(model, [block], pruner, "single", [{"input_ids": torch.arange(5, 19).reshape(2, 7)}])
    assert found.counts.tolist() == [2 * block.runs]
    assert block.runs > 1


@pytest.mark.parametrize(
    ("types", "kind", "message"),
    [
        ([[0, 0, 0], [0, 1, 1]], "single", "input_type='single', but 1 of 2 examples of a batch have a second text"),
        ([[0, 0, 0], [0, 1, 1]], "pair", "input_type='pair', but 1 of 2 examples of a batch have no second text"),
        ([[0, 0, 0], [0, 0, 1]], "pair", "but 2 of 2"),  # a token type at a place that is padding says nothing
    ],
)
def test_examples_of_the_other_type_are_refused(types: list[list[int]], kind: str, message: str) -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0 if "2 of 2" in message else 1]])
    batch = {"input_ids": torch.ones(2, 3), "token_type_ids": torch.tensor(types), "attention_mask": mask}
    with pytest.raises(PruningError, match=message):
        check_input_type(batch, kind, BertConfig())


def test_without_token_types_either_type_is_accepted() -> None:
    batch = {"input_ids": torch.ones(2, 3), "token_type_ids": torch.zeros(2, 3)}
    for kind in ("single", "pair"):
        check_input_type({"input_ids": torch.ones(2, 3)}, kind, BertConfig())
        check_input_type(batch, kind, BertConfig(type_vocab_size=1))
