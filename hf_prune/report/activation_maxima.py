"""How large what the residual mappings put out is, from example to example (Lin et al. 2020, Figure 2)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..anatomy import describe_model
from ..calibration import CalibrationData, without_labels
from ..gates import EpsilonGates, MappingKind, residual_mappings
from ..gates.epsilon import Reduction
from ..rows import Collator
from ..scores import evaluating


@dataclass(frozen=True)
class MappingMaxima:
    """The largest absolute outputs of one residual mapping.

    Attributes:
        key: of its block, or the path of its layer.
        kind: what the mapping is, see `residual_mappings`.
        values: max|F|, float32 `[examples or batches, gates]`, on the CPU; a gate is a head or the whole mapping.
    """

    key: str
    kind: MappingKind
    values: torch.Tensor


@torch.no_grad()
def activation_maxima(
    model: PreTrainedModel,
    data: Any,
    *,
    kinds: Collection[MappingKind] = ("heads", "feed_forward"),
    reduction: Reduction = "example",
    data_collator: Collator | None = None,
    batch_size: int = 32,
) -> list[MappingMaxima]:
    """Measures max|F| of every residual mapping, in evaluation mode and without padding.

    Args:
        model: a supported model.
        data: as for `prune_model`: a Dataset of tokenised rows, a DataLoader, or batches.
        kinds: which mappings, see `residual_mappings`.
        reduction: "example" for a value per example, "batch" for one per batch.
        data_collator, batch_size: make batches of rows.

    Returns:
        One entry per mapping, in the order of the blocks, with values in the order of the batches. A mapping that a
        batch does not reach has no value for it.
    """
    mappings = residual_mappings(describe_model(model), kinds)
    rows: list[list[torch.Tensor]] = [[torch.empty(0, mapping.gates)] for mapping in mappings]
    with EpsilonGates(model, mappings, reduction) as gates, evaluating(model):
        gates.counts_evaluation = True
        for batch in CalibrationData(data, model, data_collator=data_collator, batch_size=batch_size):
            model(**without_labels(batch))
            for store, values in zip(rows, gates.batch_maxima(), strict=True):
                store.append(values.float().cpu())
    return [MappingMaxima(item.key, item.kind, torch.cat(store)) for item, store in zip(mappings, rows, strict=True)]
