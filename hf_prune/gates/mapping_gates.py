"""The hooks that measure a residual mapping and close it, one class for each place where a mapping can be reached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..anatomy import linear_at
from ..anatomy.layer_calls import LayerCall, hidden_of
from ..errors import UnsupportedModelError
from .contributions import largest_contributions, open_contributions, split_units
from .epsilon import Reduction, is_open, largest_in_rows, where_open
from .positions import Positions
from .residual_mappings import MappingKind, ResidualMapping
from .tally import Tally
from .unit_gates import gate_columns


@dataclass
class GateSettings:
    """What all gates of a model have in common.

    Attributes:
        reduction: whether a gate is for the whole batch or for an example.
        epsilon: the threshold of each kind of mapping; empty as long as gates are only measured.
        acting: whether gates do anything to the batch that runs now.
        counting: whether it counts.
    """

    reduction: Reduction
    epsilon: dict[MappingKind, float] = field(default_factory=dict)
    acting: bool = True
    counting: bool = False


class MappingGate(ABC):
    """The gates of one mapping.

    Attributes:
        mapping: the mapping.
        kept: bool `[gates]` on the CPU, False for those that are closed for good.
        maxima: the mean of max|F|.
        opened: the share of the mini-batches in which a gate was open.
    """

    def __init__(self, mapping: ResidualMapping, positions: Positions, settings: GateSettings) -> None:
        self.mapping = mapping
        self.kept = torch.ones(mapping.gates, dtype=torch.bool)
        self.maxima, self.opened = Tally(mapping.gates), Tally(mapping.gates)
        self._positions = positions
        self._settings = settings

    @abstractmethod
    def place(self, model: nn.Module) -> RemovableHandle:
        """Puts the gates on a model."""

    @property
    def _is_idle(self) -> bool:
        """Whether nobody wants to know, and nothing can be closed."""
        settings = self._settings
        return not settings.acting or not (settings.epsilon or settings.counting) or not self.kept.any()

    def _grouped(self, rows: torch.Tensor) -> torch.Tensor:
        return self._positions.in_groups(rows, self._settings.reduction)

    def _observe(
        self, measure: Callable[[], torch.Tensor], decide: Callable[[float], torch.Tensor]
    ) -> torch.Tensor | None:
        """Measures or decides, whichever it is time for.

        Args:
            measure: gives max|F|, `[groups, gates]`.
            decide: whether max|F| is larger than a threshold, bool `[groups, gates]`.

        Returns:
            The decision, or None as long as gates are only measured.
        """
        settings = self._settings
        if not settings.epsilon:
            self.maxima.see(measure())
            return None
        opened = decide(settings.epsilon[self.mapping.kind])
        if settings.counting:
            self.opened.see(opened.float())
        return opened

    def _observe_whole(self, rows: torch.Tensor) -> torch.Tensor | None:
        """`_observe` for a single gate, by the largest entry in each row, `[..., 1]`."""
        largest = self._grouped(rows).amax(1)
        return self._observe(lambda: largest, partial(is_open, largest))


class HeadGates(MappingGate):
    """Gates on what each head adds, before the input of the output projection.

    Gates are 0 or 1, so t · (C_i W_i) is (t · C_i) W_i, and what is multiplied is the head's slice of the input.
    """

    def place(self, model: nn.Module) -> RemovableHandle:
        """A forward pre-hook on the output projection."""
        [block] = self.mapping.blocks
        return linear_at(model.get_submodule(block.layer), block.output).register_forward_pre_hook(self)

    def __call__(self, module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._is_idle:
            return None
        [block], inputs = self.mapping.blocks, args[0]
        weight = module.weight  # with its graph: a parametrised weight may be cached for the module's own use
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            parts = split_units(block, inputs, weight.T if block.output.transposed else weight)
            asked = (*parts, self.kept.nonzero().flatten().tolist(), self._grouped)
            opened = self._observe(partial(largest_contributions, *asked), partial(open_contributions, *asked))
        if opened is None:
            return None
        columns = block.spread(opened | ~self.kept.to(opened.device))
        return (gate_columns(inputs, columns[0] if len(columns) == 1 else columns), *args[1:])


class SublayerGate(MappingGate):
    """The gate on a whole sublayer, after its output projection.

    Of a feed-forward sublayer the bias belongs to the mapping (Lin et al. 2020, Section 3.1), of attention it does not.
    """

    def place(self, model: nn.Module) -> RemovableHandle:
        """A forward hook on the output projection."""
        [block] = self.mapping.blocks
        return linear_at(model.get_submodule(block.layer), block.output).register_forward_hook(self)

    def __call__(self, module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if self._is_idle:
            return None
        bias = module.bias if self.mapping.kind == "attention" else None
        with torch.no_grad():
            opened = self._observe_whole(largest_in_rows(output if bias is None else output.float() - bias.float()))
        return None if opened is None else where_open(output, opened, bias)


class LayerGate(MappingGate):
    """The gate on a whole layer: where it is closed, the layer hands on what it was given, as if it were removed."""

    def place(self, model: nn.Module) -> RemovableHandle:
        """A forward hook on the layer."""
        return model.get_submodule(self.mapping.key).register_forward_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._is_idle:
            return None
        before, after = LayerCall.of(self.mapping.key, args, kwargs)[1], hidden_of(output)
        if before.shape != after.shape:
            raise UnsupportedModelError(
                f"{self.mapping.key} makes {tuple(after.shape)} from {tuple(before.shape)}, so it cannot hand on what"
                " it is given. Put gates on its heads and feed-forward sublayers instead."
            )
        with torch.no_grad():
            opened = self._observe_whole(largest_in_rows(after.float() - before.float()))
        if opened is None:
            return None
        hidden = where_open(after, opened, before)
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])


GATES: dict[MappingKind, type[MappingGate]] = {
    "heads": HeadGates,
    "attention": SublayerGate,
    "feed_forward": SublayerGate,
    "layer": LayerGate,
}
