"""How alike the hidden features of two models are, layer by layer (Gordon et al. 2020, Figure 2, right)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from ..calibration import Batch, CalibrationData, decoder_tokens, valid_tokens, without_labels
from ..errors import PruningError
from ..rows import Collator
from ..scores import evaluating

OUTPUTS = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")

States = dict[str, Sequence[torch.Tensor]]


@torch.no_grad()
def feature_similarity(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    data: Any,
    *,
    data_collator: Collator | None = None,
    batch_size: int = 32,
) -> dict[str, torch.Tensor]:
    """The mean cosine similarity of hidden features at the same token, per layer.

    Padding does not count, where the batch's mask fits the hidden states. Both models run in evaluation mode, one batch
    at a time; the modes of their modules are restored.

    Args:
        dense, pruned: models with the same layers and the same width between them; their heads may differ.
        data: as for `prune_model`: a Dataset of tokenised rows, a DataLoader, or batches.
        data_collator, batch_size: make batches of rows.

    Returns:
        Name of the model's output → float64 `[layers + 1]`, on the CPU: what goes into the first layer comes first.
        The only name is "hidden_states", or there are "encoder_hidden_states" and "decoder_hidden_states".

    Raises:
        PruningError: a model shows no hidden states, those of the two do not fit each other, or the data has no tokens.
    """
    sums: dict[str, torch.Tensor] = {}
    with ExitStack() as modes:
        for model in dict.fromkeys((dense, pruned)):
            modes.enter_context(evaluating(model))
        for batch in CalibrationData(data, dense, data_collator=data_collator, batch_size=batch_size):
            one, other = _hidden_states(dense, batch), _hidden_states(pruned, batch)
            _check_fit(one, other)
            for name, states in one.items():
                rows = [_compare(name, batch, *pair) for pair in zip(states, other[name], strict=True)]
                sums[name] = sums.get(name, 0) + torch.tensor(rows, dtype=torch.float64)
    empty = next((name for name, rows in sums.items() if not rows[:, 1].all()), None)
    if empty is not None:
        raise PruningError(f"No position of the {empty} counts: the data's attention mask says all of it is padding.")
    return {name: rows[:, 0] / rows[:, 1] for name, rows in sums.items()}


def _hidden_states(model: PreTrainedModel, batch: Batch) -> States:
    accepted = inspect.signature(model.forward).parameters
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in without_labels(batch).items()
        if name in accepted
    }
    output = model(**inputs, output_hidden_states=True, return_dict=True)
    found = {name: output[name] for name in OUTPUTS if isinstance(output.get(name), (tuple, list))}
    if not found or any(state.dim() != 3 for states in found.values() for state in states):
        raise PruningError(
            f"{type(model).__name__} shows no hidden states of the shape [rows, length, size] that could be compared."
            " Pass the part of it that has layers, such as one tower or the encoder, with data for that."
        )
    return found


def _check_fit(one: States, other: States) -> None:
    first, second = _shapes(one), _shapes(other)
    if first != second:
        raise PruningError(
            f"The hidden states of the two models do not fit each other: {_text(first)}, and {_text(second)}. Features"
            " can be compared between models with the same layers and hidden size."
        )


def _shapes(side: States) -> dict[str, list[tuple[int, ...]]]:
    return {name: [tuple(state.shape) for state in states] for name, states in side.items()}


def _text(shapes: Mapping[str, Sequence[tuple[int, ...]]]) -> str:
    parts = []
    for name, rows in shapes.items():
        seen = " or ".join(str(list(shape)) for shape in dict.fromkeys(rows))
        parts.append(f"{len(rows)} {name} of {seen}")
    return " with ".join(parts)


def _counted(name: str, batch: Batch, state: torch.Tensor) -> torch.Tensor:
    """Which positions are not padding, bool `[rows, length]`."""
    mask = decoder_tokens(batch) if name == "decoder_hidden_states" else valid_tokens(batch)
    if mask is None or mask.shape != state.shape[:-1]:
        return torch.ones(state.shape[:-1], dtype=torch.bool, device=state.device)
    return mask.to(state.device)


def _compare(name: str, batch: Batch, one: torch.Tensor, other: torch.Tensor) -> tuple[float, int]:
    """The sum of the similarities at the positions that count, and their number."""
    counted = _counted(name, batch, one)
    similarities = cosine_similarity(one[counted].double(), other.to(one.device)[counted].double(), dim=-1)
    return float(similarities.sum()), len(similarities)
