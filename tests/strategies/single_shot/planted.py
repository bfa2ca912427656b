"""A small encoder in which one head of each layer matters, as its attention shows, and texts for it."""

from __future__ import annotations

import torch
from datasets import Dataset
from transformers import BertConfig, BertModel

HIDDEN, HEADS, LAYERS, VOCABULARY = 64, 4, 2, 60
IMPORTANT = (1, 3)


def planted_model(
    seed: int = 0, *, hidden: int = HIDDEN, heads: int = HEADS, important: tuple[int, ...] = IMPORTANT
) -> BertModel:
    """Each layer's important head looks at each word itself and makes some dimensions four times as large.

    The other heads look everywhere and write next to nothing, and so do the feed-forward blocks. There are as many
    layers as important heads, and those dimensions are as many as a head has, other ones in every layer.
    """
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=len(important),
        num_attention_heads=heads,
        intermediate_size=8,
        max_position_embeddings=24,
    )
    model = BertModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    size = hidden // heads
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.01)
        model.embeddings.word_embeddings.weight.copy_(torch.randn(VOCABULARY, hidden, generator=generator))
        for place, (layer, head) in enumerate(zip(model.encoder.layer, important, strict=True)):
            rows, read = slice(size * head, size * (head + 1)), slice(size * place, size * (place + 1))
            attention = layer.attention.self
            attention.query.weight[rows, read] = attention.key.weight[rows, read] = 2 * torch.eye(size)
            attention.value.weight[rows, read] = torch.eye(size)
            layer.attention.output.dense.weight[read, rows] = 3 * torch.eye(size)
    return model


def texts(rows: int, seed: int = 0) -> Dataset:
    """Token ids of random texts of 5 to 16 words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 17, (rows,), generator=generator).tolist()
    ids = [torch.randint(5, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": ids})
