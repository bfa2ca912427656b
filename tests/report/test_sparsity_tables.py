from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_prune.errors import PruningError
from hf_prune.report import matrix_sparsity, sparsity_table
from tests.small_models import case


def mask(rows: int, columns: int, removed: int) -> torch.Tensor:
    return (torch.arange(rows * columns) >= removed).reshape(rows, columns)


MASKS = {
    "bert.embeddings.word_embeddings.weight": mask(10, 20, 50),
    "bert.encoder.layer.0.attention.self.query.weight": mask(10, 10, 40),
    "bert.encoder.layer.0.output.dense.weight": mask(10, 10, 10),
    "bert.encoder.layer.1.attention.self.query.weight": mask(10, 10, 60),
    "bert.encoder.layer.1.output.dense.weight": mask(10, 10, 0),
}


def test_the_tables_of_masks() -> None:
    assert sparsity_table(MASKS) == (
        "| matrix | weights | removed | sparsity |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| `bert.embeddings.word_embeddings` | 200 | 50 | 25.0 % |\n"
        "| `attention.self.query` | 200 | 100 | 50.0 % |\n"
        "| `output.dense` | 200 | 10 | 5.0 % |\n"
        "| total | 600 | 160 | 26.7 % |\n"
        "\n"
        "| layer | weights | removed | sparsity |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| outside of the layers | 200 | 50 | 25.0 % |\n"
        "| `bert.encoder.layer.0` | 200 | 50 | 25.0 % |\n"
        "| `bert.encoder.layer.1` | 200 | 60 | 30.0 % |\n"
        "| total | 600 | 160 | 26.7 % |"
    )


def test_zeros_of_a_model_are_counted_once_in_tied_matrices() -> None:
    model = case("bert", "masked").model()
    words = model.get_input_embeddings().weight
    with torch.no_grad():
        words[:7] = 0
        model.bert.encoder.layer[1].attention.self.key.weight[:, 3] = 0
    found = {row.name: row for row in matrix_sparsity(model)}
    dense = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    assert sum(row.weights for row in found.values()) == dense
    removed = {name: row.removed for name, row in found.items() if row.removed}
    assert removed == {
        "bert.embeddings.word_embeddings.weight": 7 * words.shape[1],
        "bert.encoder.layer.1.attention.self.key.weight": words.shape[1],
    }
    assert found["bert.embeddings.word_embeddings.weight"].sparsity == pytest.approx(7 / len(words))


def test_biases_and_norms_are_no_matrices() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    (row,) = matrix_sparsity(model)
    assert (row.name, row.weights) == ("0.weight", 6)


def test_nothing_to_count_is_an_error() -> None:
    with pytest.raises(PruningError, match="LayerNorm has no matrices"):
        matrix_sparsity(nn.LayerNorm(3))
    with pytest.raises(PruningError, match="An empty set of masks"):
        sparsity_table({})


def test_weights_are_not_taken_for_masks() -> None:
    with pytest.raises(PruningError, match="bool tensor"):
        sparsity_table({"w": torch.ones(2, 2)})
