"""Latency tables of every kind of architecture, on a machine whose time is the parameters that it runs through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_prune import describe_model
from hf_prune.anatomy import linear_at
from hf_prune.budget import LatencyConditions, latency_table, latency_tables
from tests.family_models import Head, heads_of, main_head

TYPES = ("bert", "albert", "gpt2", "llama", "bloom", "codegen", "t5", "bart", "whisper", "vit", "dinov2", "clip")


def head(model_type: str) -> Head:
    return heads_of(model_type)[0] if model_type == "clip" else main_head(model_type)


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Makes a pass take as many seconds as its layer's output projections have columns; counts the measurements."""
    measured: list[int] = []

    def time_in_turn(passes: Sequence[Any], repeats: int, device: torch.device) -> list[float]:
        measured.append(len(passes))
        seconds = []
        for run in passes:
            run()
            seconds.append(float(run.layer.seconds()))
        return seconds

    monkeypatch.setattr(latency_table, "time_in_turn", time_in_turn)
    monkeypatch.setenv("HF_PRUNE_CACHE", str(tmp_path))
    return measured


def let_layers_count(model: torch.nn.Module) -> None:
    anatomy = describe_model(model)
    for name in anatomy.layers:
        layer = model.get_submodule(name)
        blocks = anatomy.blocks_of_layer(name)

        class Counting(type(layer)):  # a copy of the layer counts its own columns
            def seconds(self, blocks: Sequence[Any] = blocks) -> int:
                return sum(linear_at(self, b.output).weight.shape[0 if b.output.transposed else 1] for b in blocks)

        layer.__class__ = Counting


@pytest.mark.parametrize("model_type", TYPES)
def test_every_block_is_measured_alone(model_type: str, columns: list[int]) -> None:
    model = head(model_type).model()
    let_layers_count(model)
    anatomy = describe_model(model)
    conditions = LatencyConditions.of(model, 2, 7)
    tables = latency_tables(model, anatomy, conditions)
    assert list(tables) == [block.key for block in anatomy.blocks]
    assert columns
    for block in anatomy.blocks:
        table = tables[block.key]
        lowest = 1 if model_type == "bloom" and block.kind == "attention" else 0  # its attention needs a head to run
        width = block.runs * block.output.width
        expected = [0] * (lowest + 1) + [width * (units - lowest) for units in range(lowest + 1, block.units + 1)]
        assert table.tolist() == pytest.approx(expected)
    assert sum(table.sum() for table in tables.values()) > 0


def test_stacks_of_different_lengths_are_measured_apart(columns: list[int]) -> None:
    model = head("clip").model()
    let_layers_count(model)
    latency_tables(model, describe_model(model), LatencyConditions.of(model, 2, 7))
    # The towers' layers have the same class and sizes, but see 7 tokens and 5 patches.
    assert len(columns) == 4


def test_blocks_that_do_not_run_cost_nothing(monkeypatch: pytest.MonkeyPatch, columns: list[int]) -> None:
    model = head("t5").model()
    let_layers_count(model)
    anatomy = describe_model(model)
    shapes: Callable[..., dict[str, torch.Size]] = latency_table.layer_shapes

    def without_decoder(*arguments: Any) -> dict[str, torch.Size]:
        return {name: shape for name, shape in shapes(*arguments).items() if not name.startswith("decoder")}

    monkeypatch.setattr(latency_table, "layer_shapes", without_decoder)
    tables = latency_tables(model, anatomy, LatencyConditions.of(model, 2, 7))
    for block in anatomy.blocks:
        assert tables[block.key].shape == (block.units + 1,)
        assert bool(tables[block.key].any()) is block.layer.startswith("encoder")
