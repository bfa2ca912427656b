"""Whatever a user calls calibration data, as batches for a model's forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader, IterableDataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

from hf_prune import PruningError
from hf_prune.calibration import CalibrationData, decoder_tokens, example_count, valid_tokens, without_labels
from tests.small_models import case
from tests.task_models import TASK_MODELS

BERT = case("bert", "classification")
LENGTHS = (5, 2, 7, 3, 3, 6, 2)


@pytest.fixture(scope="module")
def model() -> Any:
    return BERT.model()


def rows(label: str = "label") -> list[dict[str, Any]]:
    """Ragged tokenised rows; the first token numbers the row."""
    return [
        {"input_ids": [10 + index, *[30] * (length - 1)], "attention_mask": [1] * length, label: index % 3}
        for index, length in enumerate(LENGTHS)
    ]


def numbers(data: CalibrationData) -> list[int]:
    """Which rows came, in which order."""
    return [int(ids[0]) - 10 for batch in data for ids in batch["input_ids"]]


def stacked(seed: int = 0) -> dict[str, torch.Tensor]:
    return BERT.batch(seed)


class TestRows:
    @pytest.mark.parametrize("kind", ["dataset", "torch dataset", "list", "own class", "stream", "generator"])
    def test_every_row_comes_once_padded_and_labelled(self, model: Any, kind: str) -> None:
        class Rows:
            def __len__(self) -> int:
                return len(LENGTHS)

            def __getitem__(self, index: int) -> dict[str, Any]:
                return rows()[index]

        made = {
            "dataset": lambda: Dataset.from_list(rows()),
            "torch dataset": lambda: Dataset.from_list(rows()).with_format("torch"),
            "list": rows,
            "own class": Rows,
            "stream": lambda: Dataset.from_list(rows()).to_iterable_dataset(),
            "generator": lambda: iter(rows()),
        }
        data = CalibrationData(made[kind](), model, batch_size=3)
        assert sorted(numbers(data)) == list(range(len(LENGTHS)))
        for batch in data:
            assert set(batch) == {"input_ids", "attention_mask", "labels"}
            assert len(batch["input_ids"]) <= 3
            for ids, mask, label in zip(
                *(batch[name] for name in ("input_ids", "attention_mask", "labels")), strict=True
            ):
                index = int(ids[0]) - 10
                assert int(mask.sum()) == LENGTHS[index]
                assert int(label) == index % 3
                assert set(ids[LENGTHS[index] :].tolist()) <= {0}

    def test_rows_of_like_length_share_a_batch(self, model: Any) -> None:
        data = CalibrationData(Dataset.from_list(rows()), model, batch_size=2)
        lengths = sorted(batch["input_ids"].shape[1] for batch in data)
        assert lengths == [2, 3, 6, 7]

    def test_order_is_the_same_every_time(self, model: Any) -> None:
        data = CalibrationData(Dataset.from_list(rows()), model, batch_size=2)
        again = CalibrationData(Dataset.from_list(rows()), model, batch_size=2)
        assert numbers(data) == numbers(data) == numbers(again)
        assert torch.equal(data.first()["input_ids"], next(iter(data))["input_ids"])

    def test_padding_token_and_mask_come_from_the_config(self) -> None:
        item = case("roberta", "classification")
        ragged = [{"input_ids": row["input_ids"], "labels": row["label"]} for row in rows()]
        data = CalibrationData(ragged, item.model(), batch_size=7)
        [batch] = list(data)
        assert batch["attention_mask"].sum(1).tolist() == sorted(LENGTHS)
        assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {1}

    def test_labels_of_tokens_are_padded_so_that_they_do_not_count(self) -> None:
        item = case("bert", "tokens")
        ragged = [{"input_ids": row["input_ids"], "labels": [1] * len(row["input_ids"])} for row in rows()]
        [batch] = list(CalibrationData(ragged, item.model(), batch_size=7))
        assert batch["labels"].shape == batch["input_ids"].shape
        assert ((batch["labels"] == -100) == (batch["attention_mask"] == 0)).all()

    def test_collator_of_the_user(self, model: Any) -> None:
        from tokenizers import Tokenizer, models

        words = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1}, unk_token="a"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
        collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
        data = CalibrationData(Dataset.from_list(rows()), model, data_collator=collator, batch_size=4)
        assert {batch["input_ids"].shape[1] for batch in data} == {8}
        assert all("labels" in batch for batch in data)

    def test_columns_that_the_model_does_not_take_are_dropped(self, model: Any) -> None:
        extended = [row | {"sentence": "text", "idx": index} for index, row in enumerate(rows())]
        stream = Dataset.from_list(extended).to_iterable_dataset()
        seen: list[set[str]] = []

        def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
            seen.extend(map(set, items))
            return _collate(items)

        for made in (Dataset.from_list(extended), extended, iter(extended), stream):
            collated = CalibrationData(made, model, data_collator=collate, batch_size=2)
            assert all(set(batch) == {"input_ids", "attention_mask", "labels"} for batch in collated)
        assert all(names <= {"input_ids", "attention_mask", "labels", "label"} for names in seen)

    def test_token_types_are_for_models_that_have_them(self) -> None:
        item = case("distilbert", "classification")
        typed = [row | {"token_type_ids": [0] * len(row["input_ids"])} for row in rows()]
        data = CalibrationData(Dataset.from_list(typed), item.model(), batch_size=2)
        assert all("token_type_ids" not in batch for batch in data)


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    length = max(len(item["input_ids"]) for item in items)
    batch: dict[str, Any] = {
        name: torch.tensor([item[name] + [0] * (length - len(item[name])) for item in items])
        for name in ("input_ids", "attention_mask")
    }
    batch["label_ids" if "label" in items[0] else "labels"] = torch.tensor([item["label"] for item in items])
    return batch | {"sentence": [item.get("sentence") for item in items]}


class TestBatches:
    @pytest.mark.parametrize("kind", ["list", "generator", "data loader", "iterable"])
    def test_batches_are_passed_through_and_can_be_read_twice(self, model: Any, kind: str) -> None:
        class Batches:
            def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
                return iter([stacked(0), stacked(1)])

        made = {
            "list": lambda: [stacked(0), stacked(1)],
            "generator": lambda: (stacked(seed) for seed in range(2)),
            "data loader": lambda: DataLoader([stacked(0), stacked(1)], batch_size=None),
            "iterable": Batches,
        }
        data = CalibrationData(made[kind](), model)
        for _ in range(2):
            batches = list(data)
            assert len(batches) == 2
            for seed, batch in enumerate(batches):
                assert batch.keys() == stacked(seed).keys()
                assert all(torch.equal(batch[name], value) for name, value in stacked(seed).items())
        assert torch.equal(data.first()["input_ids"], stacked(0)["input_ids"])

    def test_number_of_batches(self, model: Any) -> None:
        class Stream(IterableDataset):
            def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
                return iter([stacked(0), stacked(1), stacked(2)])

        assert CalibrationData([stacked(0), stacked(1)], model).batches == 2
        assert CalibrationData((stacked(seed) for seed in range(3)), model).batches == 3
        assert CalibrationData(Dataset.from_list(rows()), model, batch_size=3).batches == 3
        unknown = CalibrationData(DataLoader(Stream(), batch_size=None), model)
        assert unknown.batches is None
        assert len(list(unknown)) == 3

    def test_what_the_model_does_not_take_is_dropped(self, model: Any) -> None:
        [batch] = list(CalibrationData([stacked() | {"other": torch.ones(3), "note": "text"}], model))
        assert batch.keys() == stacked().keys()

    def test_batches_of_a_tokenizer(self, model: Any) -> None:
        from transformers import BatchEncoding

        [batch] = list(CalibrationData([BatchEncoding(stacked())], model))
        assert torch.equal(batch["input_ids"], stacked()["input_ids"])

    def test_one_process(self, model: Any) -> None:
        data = CalibrationData([stacked()], model)
        assert (data.processes, data.is_main) == (1, True)
        value = torch.ones(2)
        assert data.sum(value) is value
        assert data.broadcast("choice") == "choice"
        assert data.agree(lambda: "choice") == "choice"
        with pytest.raises(ZeroDivisionError):
            data.agree(lambda: 1 / 0)


class TestMeasures:
    @pytest.mark.parametrize(("examples", "batches"), [(None, 3), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (10_000, 3)])
    def test_take_goes_on_until_enough_examples_were_seen(self, model: Any, examples: int, batches: int) -> None:
        data = CalibrationData([stacked(seed) for seed in range(3)], model)
        assert len(list(data.take(examples))) == batches

    def test_sequence_length_is_the_mean_of_valid_tokens(self, model: Any) -> None:
        # 9, 5, 7 and 8 tokens in every batch: 7.25 on average, rounded up.
        assert CalibrationData([stacked(seed) for seed in range(3)], model).sequence_length() == 8
        choices = case("bert", "choices")
        assert CalibrationData([choices.batch()], choices.model()).sequence_length() == 8
        without_mask = {"input_ids": torch.ones(2, 6, dtype=torch.long)}
        assert CalibrationData([without_mask], model).sequence_length() == 6

    def test_lengths_of_models_that_read_something_else(self) -> None:
        for name, text, decoder in (("t5", 6, 5), ("whisper", None, 5), ("vit", None, None), ("llama", 7, None)):
            item = TASK_MODELS[name]
            data = CalibrationData([item.example()], item.model())
            assert (data.sequence_length(), data.decoder_length()) == (text, decoder)

    def test_decoder_tokens(self) -> None:
        labels = torch.tensor([[4, 5, -100], [3, -100, -100]])
        assert decoder_tokens({"labels": labels}).sum(1).tolist() == [2, 1]
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        assert decoder_tokens({"labels": labels, "decoder_attention_mask": mask}).sum(1).tolist() == [3, 2]
        assert decoder_tokens({"decoder_input_ids": labels}).sum(1).tolist() == [3, 3]
        assert decoder_tokens({"labels": torch.tensor([1, 0])}) is None

    def test_examples_are_counted_by_their_text(self) -> None:
        assert example_count({"pixel_values": torch.ones(12, 4), "input_ids": torch.ones(3, 5)}) == 3
        assert example_count({"cache_position": torch.arange(9), "labels": torch.ones(2)}) == 2

    def test_example_count_and_valid_tokens(self) -> None:
        assert example_count(stacked()) == 4
        assert valid_tokens(stacked()).sum(1).tolist() == [9, 5, 7, 8]
        choices = case("bert", "choices").batch()
        assert example_count(choices) == 4
        assert valid_tokens(choices).sum(1).tolist() == [9] * 3 + [5] * 3 + [7] * 3 + [8] * 3
        assert valid_tokens({"input_ids": torch.ones(2, 5)}).tolist() == [[True] * 5] * 2
        assert valid_tokens({"inputs_embeds": torch.ones(2, 5, 3)}).shape[0] == 2

    def test_without_labels(self) -> None:
        for task in ("classification", "answers", "pretraining", "masked"):
            batch = case("bert", task).batch()
            assert set(without_labels(batch)) == {"input_ids", "attention_mask"}
            assert set(batch) > {"input_ids", "attention_mask"}


class TestBadInput:
    @pytest.mark.parametrize(
        "empty", [[], Dataset.from_list([]), Dataset.from_list(rows()).select([]), iter(()), DataLoader([])], ids=type
    )
    def test_empty(self, model: Any, empty: Any) -> None:
        with pytest.raises(PruningError, match=r"calibration data is empty|columns \(none\)"):
            CalibrationData(empty, model)

    def test_none(self, model: Any) -> None:
        with pytest.raises(PruningError, match="Calibration data is needed"):
            CalibrationData(None, model)

    @pytest.mark.parametrize("value", [7, model])
    def test_cannot_be_read(self, model: Any, value: Any) -> None:
        with pytest.raises(PruningError, match="cannot be read: pass a Dataset of tokenised rows"):
            CalibrationData(value, model)

    def test_a_dictionary(self, model: Any) -> None:
        with pytest.raises(PruningError, match=r"is a dict of input_ids, .*, which is one batch: pass a list"):
            CalibrationData(stacked(), model)
        splits = DatasetDict(train=Dataset.from_list(rows()), test=Dataset.from_list(rows()))
        with pytest.raises(PruningError, match=r"is a DatasetDict of train, test, .* pass one of its values"):
            CalibrationData(splits, model)

    def test_text_that_was_not_tokenised(self, model: Any) -> None:
        text = [{"sentence": "a", "idx": 1}, {"sentence": "b", "idx": 2}]
        with pytest.raises(PruningError, match=r"columns \(sentence, idx\) is an argument .* Tokenise the data first"):
            CalibrationData(Dataset.from_list(text), model)
        with pytest.raises(PruningError, match=r"columns \(sentence, idx\) is an argument"):
            CalibrationData(text, model)
        labelled = [row | {"label": 1} for row in text]
        for made in (labelled, Dataset.from_list(labelled)):
            with pytest.raises(PruningError, match=r"no tensor named input_ids or inputs_embeds, which BertForSeq"):
                CalibrationData(made, model)

    def test_collator_may_tokenise(self, model: Any) -> None:
        text = [{"sentence": "ab", "label": 1}, {"sentence": "c", "label": 0}]

        def tokenise(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            ids = torch.tensor([[10 + len(item["sentence"])] * 3 for item in items])
            return {"input_ids": ids, "labels": torch.tensor([item["label"] for item in items])}

        [batch] = list(CalibrationData(text, model, data_collator=tokenise))
        assert batch["input_ids"].tolist() == [[12] * 3, [11] * 3]

    @pytest.mark.parametrize("batch", [torch.ones(2, 3), (torch.ones(2, 3),), "text"])
    def test_batches_that_are_no_dictionaries(self, model: Any, batch: Any) -> None:
        with pytest.raises(PruningError, match="batches must be dictionaries of tensors"):
            CalibrationData([batch], model)

    @pytest.mark.parametrize("batch", [{"pixel_values": torch.ones(2, 3)}, {"labels": torch.ones(2, 3)}])
    def test_batches_without_a_tensor_for_the_model(self, model: Any, batch: Any) -> None:
        for made in ([batch], iter([batch])):
            with pytest.raises(PruningError, match="holds no tensor named input_ids or inputs_embeds"):
                CalibrationData(made, model)

    def test_rows_of_nothing(self, model: Any) -> None:
        for made in ([{}], iter([{}])):
            with pytest.raises(PruningError, match=r"columns \(none\) is an argument of the model"):
                CalibrationData(made, model)
