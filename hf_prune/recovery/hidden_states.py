"""Learning from a teacher's hidden states beside its logits (Sun et al. 2019; Jiao et al. 2020, Eq. 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..anatomy.layer_calls import hidden_of
from ..anatomy.matrices import inner_model
from .distillation import Distillation
from .streams import valid_positions


def hidden_distance(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Σ ‖student − teacher‖² / Σ ‖teacher‖² over the positions that count: 0 where both agree, 1 for zeros.

    Args:
        student, teacher: `[..., hidden]`.
        mask: bool `[...]`, which positions count.
    """
    found, wanted = student[mask].float(), teacher[mask].float()
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(torch.finfo(torch.float32).tiny)


class DeepDistillation(Distillation):
    """A teacher whose residual stream is learnt from as well, layer by layer, until `remove()` is called.

    The teacher's part of the loss (see `Distillation`) grows by `hidden_weight` times the mean of `hidden_distance`
    over what the layers return, padding left out.

    Args:
        model: the student, a Transformers model or a PEFT model around one.
        teacher: a model of the same task with the same layers, of any sizes inside.
        layers: paths of the layers, the same in both.
        hidden_weight: of the hidden states beside the logits, above 0.
        temperature, weight, labelled: as for `Distillation`.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: PreTrainedModel,
        layers: Sequence[str],
        hidden_weight: float,
        temperature: float = 2.0,
        weight: float = 0.5,
        *,
        labelled: bool = True,
    ) -> None:
        super().__init__(model, teacher, temperature, weight, labelled=labelled)
        self._inner, self._hidden_weight = inner_model(model), hidden_weight
        # In the order of the calls: a layer may run several times.
        self._learnt: list[tuple[str, torch.Tensor]] = []
        self._taught: list[tuple[str, torch.Tensor]] = []
        self._handles: list[RemovableHandle] = [model.register_forward_pre_hook(self._begin)]
        for inner, states in ((self._inner, self._learnt), (teacher, self._taught)):
            self._handles += [
                inner.get_submodule(layer).register_forward_hook(_recorder(layer, states)) for layer in layers
            ]

    def remove(self) -> None:
        super().remove()
        for handle in self._handles:
            handle.remove()
        self._begin()

    def _begin(self, *_: Any) -> None:
        self._learnt.clear()
        self._taught.clear()

    def _part(self, inputs: Mapping[str, Any], output: ModelOutput) -> torch.Tensor:
        part = super()._part(inputs, output)  # in which the teacher runs
        distances = [
            hidden_distance(found, wanted.to(found), valid_positions(self._inner, layer, dict(inputs), found))
            for (layer, found), (_, wanted) in zip(self._learnt, self._taught, strict=True)
        ]
        self._begin()
        return part + self._hidden_weight * torch.stack(distances).mean()


def _recorder(layer: str, states: list[tuple[str, torch.Tensor]]) -> Callable[[nn.Module, Any, Any], None]:
    def record(module: nn.Module, args: Any, output: Any) -> None:
        states.append((layer, hidden_of(output)))

    return record
