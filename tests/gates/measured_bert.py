"""A BERT without dropout, and what its mappings put out with all products at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy import Block, linear_at, weight_of
from hf_prune.gates.residual_mappings import MappingKind
from tests.small_models import case

BERT = case("bert", "classification")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# A closed gate must show; the first layer's heads differ by more than a factor of two.
EPSILON: dict[MappingKind, float] = {"heads": 7.0, "feed_forward": 9.0}


def bert() -> PreTrainedModel:
    """In training mode."""
    return BERT.model(**NO_DROPOUT).train()


@contextmanager
def captured(model: PreTrainedModel) -> Iterator[dict[str, list[tuple[torch.Tensor, torch.Tensor]]]]:
    """The input and the output of every output projection, run by run."""
    runs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def note(key: str, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        runs.setdefault(key, []).append((args[0].detach(), output.detach()))

    handles = [
        linear_at(model.get_submodule(block.layer), block.output).register_forward_hook(partial(note, block.key))
        for block in describe_model(model).blocks
    ]
    yield runs
    for handle in handles:
        handle.remove()


def products(model: PreTrainedModel, block: Block, inputs: torch.Tensor) -> torch.Tensor:
    """What every unit adds, `[units, ..., hidden]`."""
    weight = weight_of(model.get_submodule(block.layer), block.output).detach()
    columns = torch.from_numpy(block.columns)
    return torch.stack([inputs[..., columns == unit] @ weight[:, columns == unit].T for unit in range(block.units)])


def expected_maxima(
    model: PreTrainedModel, block: Block, runs: list[tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor | None
) -> torch.Tensor:
    found = []
    for inputs, output in runs:
        values = products(model, block, inputs) if block.kind == "attention" else output[None]
        rows = values.abs().amax(-1).flatten(1)
        found.append(rows[:, mask.flatten()].amax(1) if mask is not None else rows.amax(1))
    return torch.stack(found).amax(0)
