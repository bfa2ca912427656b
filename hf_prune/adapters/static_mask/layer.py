"""A linear layer below static masks."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...errors import PruningError
from .masked_linear import masked_linear

PREFIX = "static_mask_"


class StaticMaskLayer(nn.Module, BaseTunerLayer):
    """`nn.Linear` or Conv1D with a mask per adapter; the layer's own weights stay untouched unless it is merged.

    Attributes:
        static_mask_scores: what is learnt, float32 of the weight's shape; only of adapters that are trained.
        static_mask_kept: the masks, bool of the weight's shape, True where a weight stays.
    """

    base_layer: nn.Linear
    static_mask_scores: nn.ParameterDict
    static_mask_kept: BufferDict
    merged_adapters: list[str]
    active_adapters: Any

    adapter_layer_names = ("static_mask_scores",)
    other_param_names = ("static_mask_kept",)

    def __init__(self, base_layer: nn.Linear, adapter_name: str, *, trained: bool) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.static_mask_scores = nn.ParameterDict()
        self.static_mask_kept = BufferDict(persistent=True)
        self.merged_adapters = []
        # What `merge` has set to zero: where, and the weights. The mask itself may be another one by `unmerge`.
        self._removed: tuple[torch.Tensor, torch.Tensor] | None = None
        self._unread: set[str] = set()
        self.add_mask(adapter_name, trained=trained)
        self._active_adapter = adapter_name

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as `[inputs, outputs]`."""
        return isinstance(self.base_layer, Conv1D)

    def add_mask(self, adapter_name: str, *, trained: bool) -> None:
        """Adds a mask that keeps everything, and scores of 0 if it is to be trained."""
        weight = self.base_layer.weight
        self.static_mask_kept[adapter_name] = torch.ones_like(weight, dtype=torch.bool)
        if not trained:
            self._unread.add(adapter_name)
        else:
            scores = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))
            self.static_mask_scores[adapter_name] = scores.requires_grad_(adapter_name in self.active_adapters)

    def note_mask(self, adapter_name: str) -> None:
        """Takes note that an adapter has got its mask; one that is not trained must not run without."""
        self._unread.discard(adapter_name)

    def forward(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's output with the active adapter's mask; without one, or merged, what the layer itself gives."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        name = None if self.disable_adapters or self.merged else self._mask_name(self.active_adapters)
        if name is None:
            result: torch.Tensor = self.base_layer(inputs, *args, **kwargs)
            return result
        kept = self.static_mask_kept[name]
        scores = self.static_mask_scores.get(name)
        weight, bias = self.base_layer.weight, self.base_layer.bias
        return masked_linear(inputs, weight, bias, kept, scores, transposed=self.transposed)

    def _mask_name(self, adapter_names: list[str]) -> str | None:
        """Which of the adapters has a mask here."""
        names = [name for name in adapter_names if name in self.static_mask_kept]
        if len(names) > 1:
            raise PruningError(
                f"Only one static mask can be in force, got {', '.join(names)}. Choose with set_adapter."
            )
        if self._unread.intersection(names):
            raise PruningError(
                f"No masks have been loaded for the adapter {names[0]!r}. Load it with PeftModel.from_pretrained or"
                " PeftModel.load_adapter; load_adapter of a model without PeftModel around it cannot read packed masks."
            )
        return names[0] if names else None

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Sets the removed weights of the layer itself to zero; `unmerge` brings them back, to the bit."""
        name = self._mask_name(check_adapters_to_merge(self, adapter_names))
        if name is None:
            return
        if self.merged:
            raise PruningError(f"{self.merged_adapters[0]!r} is merged already; unmerge it before {name!r}.")
        weight, removed = self.base_layer.weight, ~self.static_mask_kept[name]
        if safe_merge and not torch.isfinite(weight).all():
            raise PruningError("The base layer holds weights that are not finite.")
        self._removed = removed, weight[removed]
        weight.masked_fill_(removed, 0)
        self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """The inverse of `merge`."""
        if self._removed is None:
            return
        removed, weights = self._removed
        self.base_layer.weight[removed] = weights
        self.merged_adapters.pop()
        self._removed = None

    def _get_available_adapters(self) -> set[str]:
        return set(self.static_mask_kept)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Moves an adapter, and leaves its types alone: scores are float32 whatever the layer is."""
        place = device or self.base_layer.weight.device
        if adapter_name in self.static_mask_kept:
            self.static_mask_kept[adapter_name] = self.static_mask_kept[adapter_name].to(place)
        if adapter_name in self.static_mask_scores:
            scores = self.static_mask_scores[adapter_name]
            scores.data = scores.data.to(place)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """A mask is no low-rank change."""
        return False

    def __repr__(self) -> str:
        return "static_mask." + super().__repr__()
