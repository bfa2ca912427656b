from __future__ import annotations

import pytest
import torch

from hf_prune.anatomy import matrix_name
from hf_prune.errors import PruningError
from hf_prune.report.alike import check_alike, check_masks


@pytest.mark.parametrize(
    ("parameter", "layer", "kind"),
    [
        ("bert.encoder.layer.11.attention.self.query.weight", "bert.encoder.layer.11", "attention.self.query"),
        ("bert.embeddings.word_embeddings.weight", "", "bert.embeddings.word_embeddings"),
        ("model.layers.0.mlp.experts.3.w1.weight", "model.layers.0", "mlp.experts.*.w1"),
        ("model.layers.2.mlp.experts.down_proj", "model.layers.2", "mlp.experts.down_proj"),
        ("decoder.block.1.layer.0.SelfAttention.q.weight", "decoder.block.1", "layer.*.SelfAttention.q"),
        ("classifier.0.weight", "", "classifier.0"),
    ],
)
def test_a_name_is_taken_apart_at_its_first_number(parameter: str, layer: str, kind: str) -> None:
    found = matrix_name(parameter)
    assert (found.layer, found.kind) == (layer, kind)


def test_matrices_of_other_names_are_refused_with_those_names() -> None:
    one, other = {"a": torch.ones(2), "b": torch.ones(2)}, {"b": torch.ones(2), "c": torch.ones(2)}
    with pytest.raises(PruningError, match=r"1 only in the first \(a\) and 1 only in the second \(c\)"):
        check_alike(one, other, "masks")


def test_matrices_of_other_shapes_are_refused() -> None:
    with pytest.raises(PruningError, match=r"masks named 'a' differ in shape: \(2, 3\) and \(3, 2\)"):
        check_alike({"a": torch.ones(2, 3)}, {"a": torch.ones(3, 2)}, "masks")


def test_nothing_is_refused() -> None:
    with pytest.raises(PruningError, match="both sides are empty"):
        check_alike({}, {}, "weights")


@pytest.mark.parametrize("mask", [torch.ones(2), [True, False]])
def test_a_mask_must_be_bool(mask: object) -> None:
    with pytest.raises(PruningError, match=r"mask of 'layer\.0\.w' must be a bool tensor"):
        check_masks({"layer.0.w": mask})  # type: ignore[dict-item]
