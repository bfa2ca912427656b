"""New weights of output projections: what they are, where they are kept, and how they get into a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import nn

from ..anatomy import Block, UndoLog, linear_at, oriented, stored
from ..anatomy.parameters import change_parameter


@dataclass(frozen=True)
class Repair:
    """New weights of a block's output projection on its kept units.

    Attributes:
        weight: `[hidden, columns of the kept units]`.
        bias: `[hidden]`, or None where the projection has none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weight and the bias, if there is one, by name."""
        return {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}


class StoredRepairs(MutableMapping[str, Repair]):
    """Repairs by block key, whose tensors may be in files: they are read whenever one is asked for.

    Args:
        tensors: where they are kept, see `hf_prune.offloading.tensor_store`.
    """

    def __init__(self, tensors: MutableMapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._names: dict[str, tuple[str, ...]] = {}

    def __getitem__(self, key: str) -> Repair:
        tensors = [self._tensors[name] for name in self._names[key]]
        return Repair(tensors[0], tensors[1] if len(tensors) > 1 else None)

    def __setitem__(self, key: str, repair: Repair) -> None:
        named = {f"{key}.{name}": tensor for name, tensor in repair.tensors().items()}
        if key in self:
            del self[key]
        self._tensors.update(named)
        self._names[key] = tuple(named)

    def __delitem__(self, key: str) -> None:
        for name in self._names.pop(key):
            del self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def put_repair(
    layer: nn.Module,
    block: Block,
    repairs: Mapping[str, Repair],
    log: UndoLog,
    columns: torch.Tensor | None = None,
) -> None:
    """Puts a block's repair in the place of its output projection's weights.

    Args:
        layer: where the block is.
        block: the block.
        repairs: by block key; an offloaded model looks them up whenever it needs the weights.
        log: remembers what was there.
        columns: the columns of the projection that the repair is for, the others stay as they are; by default all.
    """

    def weight(old: torch.Tensor) -> torch.Tensor:
        new = repairs[block.key].weight.detach()
        if columns is None:
            return stored(new, block.output).to(old)
        whole = old.clone()
        oriented(whole, block.output)[:, columns.to(old.device)] = new.to(old)
        return whole

    def bias(old: torch.Tensor) -> torch.Tensor:
        new = repairs[block.key].bias
        return old if new is None else new.detach().to(old)

    projection = linear_at(layer, block.output)
    change_parameter(projection, "weight", weight, log)
    if projection.bias is not None:
        change_parameter(projection, "bias", bias, log)
