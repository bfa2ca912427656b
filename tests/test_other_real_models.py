"""Real models that are not BERT: a Llama with grouped-query attention, a GPT-2, and a ViT trained here."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_prune import FisherPruningConfig, RandomPruningConfig, count_flops, prune_model


def perplexity(model: PreTrainedModel, rows: list[list[int]]) -> float:
    losses = 0.0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            losses += float(model(input_ids=ids, labels=ids).loss)
    return math.exp(losses / len(rows))


@pytest.mark.real
def test_stories_are_still_told(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "stories260k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (shared / "data" / "tinystories" / "sample_2MB.txt").read_text(encoding="utf8")
    stories = [story.strip() for story in text.split("<|endoftext|>")[:140]]
    rows = [tokenizer(story, truncation=True, max_length=96)["input_ids"] for story in stories]
    held_out, train = rows[:20], Dataset.from_dict({"input_ids": rows[20:], "labels": rows[20:]})

    def pruned(config: FisherPruningConfig | RandomPruningConfig) -> tuple[PreTrainedModel, float]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        before = count_flops(model, 96)
        prune_model(model, config, train)
        assert count_flops(model, 96) < before
        return model.eval(), perplexity(model, held_out)

    dense = perplexity(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), held_out)
    settings = {"flops": 0.9, "sequence_length": 96, "latency_batch_size": 1, "round_to": 1}
    _, unrepaired = pruned(FisherPruningConfig(recovery="none", **settings))
    model, repaired = pruned(FisherPruningConfig(**settings))
    _, random = pruned(RandomPruningConfig(**settings))
    assert dense < repaired < 1.3 * dense
    assert repaired < unrepaired < random

    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = torch.tensor([rows[0][:12]])
    greedy = GenerationConfig(max_new_tokens=30, do_sample=False, eos_token_id=2, pad_token_id=0)
    told = [
        each.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy, use_cache=cached)
        for each in (model, loaded)
        for cached in (True, False)
    ]
    assert all(torch.equal(one, told[0]) for one in told)


@pytest.mark.real
def test_digits_are_still_sorted(shared: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(shared / "models" / "gpt-nano-sort", dtype=torch.float32)
    inputs = torch.tensor(list(itertools.product(range(3), repeat=6)))
    right = inputs.sort(1).values
    ids = torch.cat([inputs, right[:, :-1]], dim=1)
    labels = ids.clone()
    labels[:, :6] = -100
    some = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))[:300]
    train = Dataset.from_dict({"input_ids": ids[some].tolist(), "labels": labels[some].tolist()})
    prune_model(model, FisherPruningConfig(flops=0.7, latency_batch_size=1, round_to=1), train)
    made = model.eval().generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert int((made[:, 6:] == right).all(1).sum()) >= 720


def test_digits_are_still_recognised(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 8 - 1
    targets = torch.from_numpy(labels)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=2, num_channels=1, num_labels=10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(8):
        for index in torch.randperm(1297).split(64):
            model(pixel_values=pixels[index], labels=targets[index]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()

    def accuracy(vit: PreTrainedModel) -> float:
        with torch.no_grad():
            return float((vit(pixel_values=pixels[1297:]).logits.argmax(-1) == targets[1297:]).float().mean())

    dense, flops = accuracy(model), count_flops(model)
    assert dense > 0.8
    train = Dataset.from_dict({"pixel_values": pixels[:512].numpy(), "labels": labels[:512]}).with_format("torch")
    result = prune_model(model, FisherPruningConfig(flops=0.6, latency_batch_size=4), train)
    assert count_flops(model) <= 0.6 * flops
    assert accuracy(model) > dense - 0.1
    result.save_pretrained(tmp_path / "small")
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=pixels[:8]).logits, model(pixel_values=pixels[:8]).logits)
