"""The masks of one adapter, as the strategies work with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn

from ...anatomy import WeightMatrix
from ...errors import PruningError
from ...gates import MatrixMasks, check_masks
from ...gates.bits import pack_mask, unpack_mask
from .layer import StaticMaskLayer


class AdapterMasks(MatrixMasks):
    """Masks that lie in an adapter's layers; the weights below are not touched.

    Args:
        model: the model with the layers in it, by whose names the matrices go.
        adapter: which adapter's.
    """

    def __init__(self, model: nn.Module, adapter: str) -> None:
        named = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, StaticMaskLayer)]
        named = [(name, layer) for name, layer in named if adapter in layer.static_mask_kept]
        self.layers = tuple(layer for _, layer in named)
        self.matrices = tuple(
            WeightMatrix(
                f"{name}.weight", name, cast(nn.Parameter, layer.base_layer.weight), 0 if layer.transposed else -1
            )
            for name, layer in named
        )
        self._adapter = adapter

    @property
    def masks(self) -> list[torch.Tensor]:
        """One bool tensor per matrix, of its shape, True where a weight stays; change them with `set`."""
        return [layer.static_mask_kept[self._adapter] for layer in self.layers]

    @torch.no_grad()
    def set(self, masks: Sequence[torch.Tensor]) -> None:
        """Lets these masks hold."""
        check_masks(self.matrices, masks)
        for layer, own, mask in zip(self.layers, self.masks, masks, strict=True):
            own.copy_(mask)
            layer.note_mask(self._adapter)

    def raw(self, index: int) -> torch.Tensor:
        """A matrix's weights, as a tensor of its own."""
        return self.matrices[index].parameter.detach().clone()

    def apply(self) -> None:
        """Nothing to do: the forward pass multiplies."""

    def delete(self) -> None:
        """Not for frozen weights.

        Raises:
            PruningError: always.
        """
        raise PruningError("The weights below an adapter never change: none can be zero and learn again.")

    def remove(self, *, restore: bool = True) -> None:
        """The masks are the adapter, so they stay; with `restore` they keep everything."""
        if restore:
            self.set([torch.ones_like(mask) for mask in self.masks])

    def state(self) -> dict[str, torch.Tensor]:
        """The masks' bits: `<name>.bits`, uint8, on the CPU."""
        pairs = zip(self.matrices, self.masks, strict=True)
        return {f"{matrix.name}.bits": pack_mask(mask) for matrix, mask in pairs}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        missing = [matrix.name for matrix in self.matrices if f"{matrix.name}.bits" not in tensors]
        if missing:
            raise PruningError(f"There is no stored mask for {missing[0]} (of {len(missing)}).")
        found = [(matrix, tensors[f"{matrix.name}.bits"]) for matrix in self.matrices]
        self.set([unpack_mask(bits, matrix.parameter.shape, matrix.name) for matrix, bits in found])
