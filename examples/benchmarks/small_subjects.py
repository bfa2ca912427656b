"""Small real models that are not BERT, with what they were made for: data to calibrate on and a score on data
that was not calibrated on.
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

STORY_TOKENS = 256
CALIBRATION_STORIES, CALIBRATION_TOKENS = 512, 128
EVALUATION_STORIES = 40
DIGITS, SORTED_LENGTH = 3, 6


class Subject(ABC):
    """A model and its task.

    Attributes:
        title: what the model is.
        metric: what `score` returns.
        lower_is_better: its direction.
    """

    title: str
    metric: str
    lower_is_better = False

    @abstractmethod
    def model(self) -> PreTrainedModel:
        """A fresh copy of the dense model, float32, in evaluation mode."""

    @abstractmethod
    def calibration(self, seed: int) -> Dataset:
        """Calibration rows, a new sample for each seed."""

    @abstractmethod
    def score(self, model: PreTrainedModel) -> float:
        """How good a model is."""


class Stories(Subject):
    """A language model of TinyStories: Llama with grouped-query attention.

    Perplexity on the first stories of the file, calibration on others. The model may have been trained on all of them,
    so only differences mean something.
    """

    title = "stories260k (Llama, 5 layers, 8 heads in 4 KV groups, hidden size 64)"
    metric = "perplexity"
    lower_is_better = True

    def __init__(self, models: Path, data: Path) -> None:
        self._folder = models / "stories260k"
        tokenizer = AutoTokenizer.from_pretrained(self._folder)
        text = (data / "tinystories" / "sample_2MB.txt").read_text(encoding="utf8")
        stories = [story.strip() for story in text.split("<|endoftext|>") if story.strip()]
        self._rows = [tokenizer(story, truncation=True, max_length=STORY_TOKENS)["input_ids"] for story in stories[:-1]]

    def model(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32).eval()

    def calibration(self, seed: int) -> Dataset:
        others = range(EVALUATION_STORIES, len(self._rows))
        chosen = np.random.default_rng(seed).permutation(others)[:CALIBRATION_STORIES]
        rows = [self._rows[index][:CALIBRATION_TOKENS] for index in chosen]
        return Dataset.from_dict({"input_ids": rows, "labels": rows})

    def score(self, model: PreTrainedModel) -> float:
        losses, tokens = 0.0, 0
        with torch.inference_mode():
            for row in self._rows[:EVALUATION_STORIES]:
                ids = torch.tensor([row])
                losses += float(model(input_ids=ids, labels=ids).loss) * (len(row) - 1)
                tokens += len(row) - 1
        return float(np.exp(losses / tokens))


class Sorter(Subject):
    """A GPT-2 that sorts six digits from {0, 1, 2}: all 729 inputs are tried, of which half are calibrated on."""

    title = "gpt-nano-sort (GPT-2, 3 layers, 3 heads, hidden size 48)"
    metric = "inputs sorted, of 729"

    def __init__(self, models: Path) -> None:
        self._folder = models / "gpt-nano-sort"
        self._inputs = torch.tensor(list(itertools.product(range(DIGITS), repeat=SORTED_LENGTH)))

    def model(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32).eval()

    def calibration(self, seed: int) -> Dataset:
        chosen = np.random.default_rng(seed).permutation(len(self._inputs))[:364]
        unsorted = self._inputs[torch.from_numpy(chosen)]
        # The model has eleven positions: the last digit is never read, only written.
        ids = torch.cat([unsorted, unsorted.sort(1).values[:, :-1]], dim=1)
        labels = ids.clone()
        labels[:, :SORTED_LENGTH] = -100
        return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})

    def score(self, model: PreTrainedModel) -> float:
        ids = self._inputs
        with torch.inference_mode():
            for _ in range(SORTED_LENGTH):
                ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        return float((ids[:, SORTED_LENGTH:] == self._inputs.sort(1).values).all(1).sum())


class SortingPerplexity(Sorter):
    """The same GPT-2, judged by how likely it finds the sorted digits, which tells more where none is missed."""

    metric = "perplexity of the sorted digits"
    lower_is_better = True

    def score(self, model: PreTrainedModel) -> float:
        wanted = self._inputs.sort(1).values
        with torch.inference_mode():
            logits = model(input_ids=torch.cat([self._inputs, wanted[:, :-1]], dim=1)).logits[:, SORTED_LENGTH - 1 :]
            return float(functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()).exp())


class Digits(Subject):
    """A ViT trained here, in about a minute, on scikit-learn's handwritten digits; accuracy on a third of them."""

    title = "a ViT (4 layers, 4 heads, hidden size 64) trained on scikit-learn's digits"
    metric = "accuracy"

    def __init__(self, epochs: int = 30) -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        pixels = torch.from_numpy(images[order]).float().reshape(-1, 1, 8, 8) / 8 - 1
        targets = torch.from_numpy(labels[order])
        held_out = len(pixels) // 3
        self._train, self._test = (pixels[held_out:], targets[held_out:]), (pixels[:held_out], targets[:held_out])
        self._trained = _train_vit(*self._train, epochs)

    def model(self) -> PreTrainedModel:
        return copy.deepcopy(self._trained)

    def calibration(self, seed: int) -> Dataset:
        pixels, targets = self._train
        chosen = np.random.default_rng(seed).permutation(len(pixels))[:512]
        rows: dict[str, Any] = {"pixel_values": pixels[chosen].numpy(), "labels": targets[chosen].tolist()}
        return Dataset.from_dict(rows).with_format("torch")

    def score(self, model: PreTrainedModel) -> float:
        pixels, targets = self._test
        with torch.inference_mode():
            return 100 * float((model(pixel_values=pixels).logits.argmax(-1) == targets).float().mean())


def _train_vit(pixels: torch.Tensor, targets: torch.Tensor, epochs: int) -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=2, num_channels=1, num_labels=10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = -(-len(pixels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
    model.train()
    for _ in tqdm(range(epochs), desc="Train a ViT", unit="epoch", leave=False, disable=None):
        for index in torch.randperm(len(pixels)).split(64):
            model(pixel_values=pixels[index], labels=targets[index]).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval()
