"""Gates as mixins: `class MyBert(HeadGateMixin, BertForSequenceClassification)`.

Thin classes over the functions. A gated model saves an ordinary checkpoint: under the original class's name, with the
gates folded into the output projections, so that it loads as what it was in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from ..anatomy import oriented
from .epsilon import Reduction
from .epsilon_gates import EpsilonGates, add_epsilon_gates, epsilon_gates_of, remove_epsilon_gates
from .residual_mappings import MappingKind
from .spectral_norm import add_spectral_norm, has_spectral_norm, largest_singular_values, remove_spectral_norm
from .unit_gates import (
    UnitGates,
    add_filter_gates,
    add_head_gates,
    remove_filter_gates,
    remove_head_gates,
)
from .weight_masks import WeightMasks, add_weight_masks, remove_weight_masks, weight_masks_of


class GateMixin:
    """What head and filter gates share: saving as the original class, with gates folded in."""

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """`PreTrainedModel.save_pretrained` as the ungated class; gates end up in the saved weights."""
        if kwargs.get("state_dict") is None:
            kwargs["state_dict"] = self._folded_state_dict()
        with self._as_original_class():
            PreTrainedModel.save_pretrained(self, save_directory, *args, **kwargs)

    def _folded_state_dict(self: Any) -> dict[str, torch.Tensor]:
        state = self.state_dict()
        copied: set[str] = set()
        for slot in ("_head_gates", "_filter_gates"):
            gates: UnitGates | None = self.__dict__.get(slot)
            for block, value in zip(gates.blocks, gates.values, strict=True) if gates is not None else ():
                name = f"{block.layer}.{block.output.path}" + (".weight" if block.output.expert is None else "")
                if name not in copied:  # experts share one parameter
                    state[name] = state[name].clone()
                    copied.add(name)
                oriented(state[name], block.output).mul_(block.spread(value.detach()).to(state[name]))
        return state

    @contextmanager
    def _as_original_class(self: Any) -> Iterator[None]:
        """The class that transformers knows stands in while the architecture's name is taken from it."""
        gated = type(self)
        self.__class__ = _original_class(gated)
        try:
            yield
        finally:
            self.__class__ = gated


class HeadGateMixin(GateMixin):
    """Head gates on a model; see `add_head_gates`."""

    def add_head_gates(self: Any, values: Sequence[torch.Tensor] | None = None) -> UnitGates:
        """Puts gates on every head."""
        return add_head_gates(self, values)

    def remove_head_gates(self: Any) -> None:
        """Takes them off again."""
        remove_head_gates(self)

    @property
    def head_gates(self) -> UnitGates | None:
        """The gates, if there are any."""
        return self.__dict__.get("_head_gates")


class FilterGateMixin(GateMixin):
    """Filter gates on a model; see `add_filter_gates`."""

    def add_filter_gates(self: Any, values: Sequence[torch.Tensor] | None = None) -> UnitGates:
        """Puts gates on every filter."""
        return add_filter_gates(self, values)

    def remove_filter_gates(self: Any) -> None:
        """Takes them off again."""
        remove_filter_gates(self)

    @property
    def filter_gates(self) -> UnitGates | None:
        """The gates, if there are any."""
        return self.__dict__.get("_filter_gates")


class EpsilonGateMixin(GateMixin):
    """ε-gates on a model; see `add_epsilon_gates`. They depend on the input, so they are not in what is saved."""

    def add_epsilon_gates(
        self: Any,
        epsilon: float | Mapping[MappingKind, float] | None = None,
        *,
        kinds: Collection[MappingKind] = ("heads", "feed_forward"),
        reduction: Reduction = "batch",
    ) -> EpsilonGates:
        """Puts gates on every residual mapping of some kinds."""
        return add_epsilon_gates(self, epsilon, kinds=kinds, reduction=reduction)

    def remove_epsilon_gates(self: Any) -> None:
        """Takes them off again."""
        remove_epsilon_gates(self)

    @property
    def epsilon_gates(self: Any) -> EpsilonGates | None:
        """The gates, if there are any."""
        return epsilon_gates_of(self)


class BinaryMaskMixin(GateMixin):
    """Masks on single weights of a model; see `add_weight_masks`. What is saved is the masked model."""

    def add_weight_masks(self: Any, masks: Mapping[str, torch.Tensor]) -> WeightMasks:
        """Masks the named weight matrices."""
        return add_weight_masks(self, masks)

    def remove_weight_masks(self: Any, *, restore: bool = True) -> None:
        """Takes all masks off; removed weights come back unless `restore=False`."""
        remove_weight_masks(self, restore=restore)

    @property
    def weight_masks(self: Any) -> dict[str, torch.Tensor]:
        """The masks by parameter name, True where a weight stays; empty without any."""
        groups = weight_masks_of(self)
        return {matrix.name: mask for group in groups for matrix, mask in zip(group.matrices, group.masks, strict=True)}


class SpectralNormMixin(GateMixin):
    """Spectral normalisation on a model; see `add_spectral_norm`. What is saved are the weights that the model uses."""

    def add_spectral_norm(self: Any, **settings: Any) -> list[str]:
        """Puts it on the model's matrices; the settings are those of the function."""
        return add_spectral_norm(self, **settings)

    def remove_spectral_norm(self: Any, *, fold: bool = True) -> None:
        """Takes it off; the raw weights come back with `fold=False`."""
        remove_spectral_norm(self, fold=fold)

    @property
    def singular_values(self: Any) -> dict[str, float]:
        """The largest singular values of the raw matrices by name; empty without spectral normalisation."""
        return largest_singular_values(self) if has_spectral_norm(self) else {}


def _original_class(gated: type) -> type:
    """The first base that is a transformers model and no gate mixin."""
    return next(base for base in gated.__mro__ if issubclass(base, PreTrainedModel) and not issubclass(base, GateMixin))
