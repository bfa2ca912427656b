"""Removal of whole layers: by their place, or by what they do to the hidden states of calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ...anatomy import ModelAnatomy
from ...anatomy.layer_calls import Forward, LayerCall, hidden_of, replaced_forwards, run_model
from ...budget import Lengths, data_lengths, lowest_places, removed_places
from ...calibration import Batch, CalibrationData, without_labels
from ...errors import PruningError
from ...offloading import device_of
from ...recovery.streams import valid_positions
from ...report.clock import StageClock
from ...scores import block_influence, evaluating
from ...surgery.plan import layer_key
from ..base import Cut, StagedStrategy
from ..dropped_layers import LayerChoice, cut_layers
from .config import LayerDropPruningConfig


@dataclass(frozen=True)
class MeasuredLayers:
    """What is known of the layers, whatever the budget.

    Attributes:
        influences: of every layer, by its name; empty where they decide nothing.
        lengths: tokens that costs are counted for.
    """

    influences: Mapping[str, float]
    lengths: int | Lengths


def measure_layers(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: LayerDropPruningConfig,
    data: CalibrationData,
    clock: StageClock,
) -> MeasuredLayers:
    """The influence of every layer, where that decides."""
    influences = {}
    if config.which == "score":
        with clock("scores"):
            influences = layer_influences(model, anatomy, data)
    with clock("search"):
        return MeasuredLayers(influences, data_lengths(model, anatomy, data, config.sequence_length))


def choose_layers(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: LayerDropPruningConfig,
    data: CalibrationData,
    clock: StageClock,
    measured: MeasuredLayers,
) -> Cut:
    """Decides which layers go; the same on every process."""
    choose: LayerChoice = partial(_by_place, which=config.which)
    if config.which == "score":
        choose = partial(_by_influence, influences=measured.influences)
    return cut_layers(anatomy, config, clock, measured.lengths, choose)


prune_layers = StagedStrategy(measure_layers, choose_layers)


def _by_place(names: Sequence[str], count: int, which: str) -> list[int]:
    return removed_places(len(names), count, which)


def _by_influence(names: Sequence[str], count: int, influences: Mapping[str, float]) -> list[int]:
    return lowest_places([influences[name] for name in names], count)


def layer_influences(model: PreTrainedModel, anatomy: ModelAnatomy, data: CalibrationData) -> dict[str, float]:
    """Block Influence of every layer by its name: the mean of 1 − cos(input, output) over all positions but padding.

    Raises:
        PruningError: a layer changes the shape of its hidden states, so that they cannot be compared; or they are not
            finite.
    """
    # Of each layer the sum over positions, and how many they are.
    sums = torch.zeros(len(anatomy.layers), 2, dtype=torch.float64, device=device_of(model))
    with torch.no_grad(), evaluating(model):
        data.agree(lambda: _add_influences(model, anatomy, data, sums))
    totals = data.sum(sums).cpu()
    means = totals[:, 0] / totals[:, 1].clamp_min(1)
    unknown = (~means.isfinite()).nonzero().flatten().tolist()
    if unknown:
        wrong = anatomy.layers[unknown[0]]
        raise PruningError(
            f"The hidden states of {wrong} are not finite on the calibration data, so its influence is unknown. Look"
            " for overflow in half precision: load the model with dtype=torch.bfloat16 or float32."
        )
    names = [layer_key(anatomy.blocks_of_layer(path)[0]) for path in anatomy.layers]
    return dict(zip(names, means.tolist(), strict=True))


def _add_influences(model: PreTrainedModel, anatomy: ModelAnatomy, data: CalibrationData, sums: torch.Tensor) -> None:
    """Adds up one forward pass per batch in `sums`."""
    rows = dict(zip(anatomy.layers, sums, strict=True))
    batch: Batch = {}

    def wrap(name: str, own: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = LayerCall.of(name, args, kwargs)[1].clone()  # modelling code may add to its tensors in place
            output = own(*args, **kwargs)
            if hidden_of(output).shape != hidden.shape:
                raise PruningError(f"{name} changes the shape of its hidden states: which='score' cannot compare them.")
            influence = block_influence(hidden, hidden_of(output))[valid_positions(model, name, batch, hidden)]
            rows[name] += torch.stack([influence.sum(), influence.new_tensor(influence.numel())]).to(sums.device)
            return output

        return forward

    with replaced_forwards(model, anatomy.layers, wrap):
        for batch in tqdm(data, total=data.batches, desc="Layers", unit="batch"):
            run_model(model, without_labels(batch))
