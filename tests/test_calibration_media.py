"""Images, sound and translations as calibration data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BartForSequenceClassification

from hf_prune import PruningError
from hf_prune.calibration import CalibrationData, example_count, without_labels
from tests.task_models import TASK_MODELS


def image_rows(kind: str) -> Any:
    """Seven images, each with a label, as a data set or as somebody's own rows of tensors."""
    pixels = torch.arange(7.0)[:, None, None, None].expand(7, 3, 16, 16)
    items = [{"pixel_values": image, "label": index % 3} for index, image in enumerate(pixels)]
    lists = [{"pixel_values": item["pixel_values"].tolist(), "label": item["label"]} for item in items]
    made = {
        "tensors": lambda: items,
        "stream of tensors": lambda: iter(items),
        "without labels": lambda: [{"pixel_values": item["pixel_values"]} for item in items],
        "data set": lambda: Dataset.from_list(lists),
        "torch data set": lambda: Dataset.from_list(lists).with_format("torch"),
        "labels as tensors": lambda: [item | {"label": torch.tensor(item["label"])} for item in items],
    }
    return made[kind]()


class TestImagesAndSound:
    @pytest.mark.parametrize(
        "kind",
        ["tensors", "stream of tensors", "without labels", "data set", "torch data set", "labels as tensors"],
    )
    def test_images_are_stacked(self, kind: str) -> None:
        data = CalibrationData(image_rows(kind), TASK_MODELS["vit"].model(), batch_size=3)
        batches = list(data)
        assert sorted(len(batch["pixel_values"]) for batch in batches) == [1, 3, 3]
        assert all(batch["pixel_values"].shape[1:] == (3, 16, 16) for batch in batches)
        assert sorted(float(image.mean()) for batch in batches for image in batch["pixel_values"]) == list(range(7))
        assert all(("labels" in batch) == (kind != "without labels") for batch in batches)
        for batch in batches if kind != "without labels" else ():
            assert batch["labels"].tolist() == [int(image.mean()) % 3 for image in batch["pixel_values"]]

    @pytest.mark.parametrize("name", ["vit", "clip", "whisper", "speech_to_text", "wav2vec2, ctc sum", "t5", "bart"])
    def test_batches_come_with_what_the_model_reads(self, name: str) -> None:
        item = TASK_MODELS[name]
        example = item.example()
        [batch] = list(CalibrationData([example | {"unknown": torch.ones(3)}], item.model()))
        assert set(batch) - set(example) <= {"decoder_input_ids"}
        assert all(torch.equal(batch[key], value) for key, value in example.items())
        assert example_count(batch) == 3

    @pytest.mark.parametrize("name", ["whisper", "speech_to_text", "t5", "bart"])
    def test_decoders_read_what_their_models_make_of_the_labels(self, name: str) -> None:
        item = TASK_MODELS[name]
        model, example = item.model(), item.example()
        [batch] = list(CalibrationData([example], model))
        with torch.no_grad():
            expected, found = model(**example), model(**without_labels(batch))
        assert torch.equal(expected.logits, found.logits)
        own = {"decoder_input_ids": torch.full((3, 6), 5)}
        [batch] = list(CalibrationData([example | own], model))
        assert torch.equal(batch["decoder_input_ids"], own["decoder_input_ids"])

    def test_labels_of_a_class_are_nothing_to_read(self) -> None:
        config = TASK_MODELS["bart"].model().config
        model = BartForSequenceClassification(config)
        [batch] = list(CalibrationData([{"input_ids": torch.full((2, 4), 2), "labels": torch.tensor([0, 1])}], model))
        assert set(batch) == {"input_ids", "labels"}

    def test_translations_as_rows(self) -> None:
        ragged = [{"input_ids": [5] * length, "labels": [6] * (8 - length)} for length in (2, 5, 7)]
        [batch] = list(CalibrationData(ragged, TASK_MODELS["t5"].model(), batch_size=3))
        assert batch["attention_mask"].sum(1).tolist() == [2, 5, 7]
        assert (batch["labels"] != -100).sum(1).tolist() == [6, 3, 1]

    def test_sounds_of_different_lengths_need_a_collator(self) -> None:
        sounds = [{"input_values": [0.5] * length, "labels": [1, 2]} for length in (80, 120)]
        model = TASK_MODELS["wav2vec2, ctc sum"].model()
        with pytest.raises(PruningError, match=r"input_values differ in shape \(\(120,\), \(80,\)\).*data_collator"):
            CalibrationData(sounds, model)
        [batch] = list(CalibrationData([sounds[0], sounds[0]], model))
        assert batch["input_values"].shape == (2, 80)
