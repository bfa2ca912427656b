from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from hf_prune import MetaPruner, MetaPrunerConfig, PruningError

SMALL = {"map_size": 32, "base_filters": 4, "initializer_range": 0.3}


def small_pruner() -> MetaPruner:
    torch.manual_seed(0)
    pruner = MetaPruner(MetaPrunerConfig(**SMALL))
    for name, buffer in pruner.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in name else -0.5))
    return pruner.eval()


def test_the_paper_s_network_has_five_convolutions_and_its_number_of_parameters() -> None:
    pruner = MetaPruner(MetaPrunerConfig())
    convolutions = [module for module in pruner.encoder if isinstance(module, torch.nn.Conv2d)]
    assert [module.out_channels for module in convolutions] == [8, 16, 32, 64, 128]
    assert pruner.num_parameters() == 178_784
    assert pruner(torch.rand(2, 128, 128)).scores.shape == (2, 2)


def test_it_is_convolutions_norms_and_a_sigmoid() -> None:
    pruner, maps = small_pruner(), torch.rand(3, 32, 32)
    weights = pruner.state_dict()
    hidden = functional.leaky_relu(functional.conv2d(maps[:, None], weights["encoder.0.weight"], None, 2, 1), 0.2)
    for conv, norm in ((2, 3), (5, 6)):
        hidden = functional.conv2d(hidden, weights[f"encoder.{conv}.weight"], None, 2, 1)
        mean, variance, gain, shift = (
            weights[f"encoder.{norm}.{name}"].view(1, -1, 1, 1)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        hidden = functional.leaky_relu((hidden - mean) / (variance + 1e-5).sqrt() * gain + shift, 0.2)
    assert hidden.shape[-2:] == (4, 4)
    logits = torch.einsum("ncyx,scyx->ns", hidden, weights["scorer.weight"])
    torch.testing.assert_close(pruner(maps).scores, logits.sigmoid())


def test_scores_keep_the_maps_leading_shape_and_do_not_depend_on_how_many_are_scored_at_once() -> None:
    pruner, maps = small_pruner(), torch.rand(3, 5, 32, 32)
    both = pruner(maps.flatten(0, 1)).scores.reshape(3, 5, 2)
    assert (both[..., 0] - both[..., 1]).abs().min() > 1e-4
    for column, kind in enumerate(("single", "pair")):
        for at_once in (1, 4, 256, None):
            torch.testing.assert_close(pruner.scores(maps, kind, at_once), both[..., column])


def test_half_precision_maps_are_scored_in_the_pruner_s_precision() -> None:
    assert small_pruner().scores(torch.rand(2, 32, 32).bfloat16(), "single").dtype == torch.float32


def test_it_is_saved_and_loaded_like_any_model(tmp_path: Path) -> None:
    pruner, maps = small_pruner(), torch.rand(4, 32, 32)
    pruner.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    for loaded in (MetaPruner.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, MetaPruner)
        assert torch.equal(loaded.eval()(maps).scores, pruner(maps).scores)
    assert AutoConfig.from_pretrained(tmp_path).map_size == 32


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    small_pruner().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(PruningError, match="format 2, but this hf_prune reads format 1"):
        MetaPruner.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [8, 100])
def test_sizes_that_do_not_halve_are_refused(size: int) -> None:
    with pytest.raises(PruningError, match=f"map_size={size} must be a power of two of at least 16"):
        MetaPruner(MetaPrunerConfig(map_size=size))


def test_a_network_without_filters_is_refused() -> None:
    with pytest.raises(PruningError, match="base_filters=0"):
        MetaPruner(MetaPrunerConfig(base_filters=0))
