"""How much the loss minds errors of a block's output, in each direction."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..anatomy import ModelAnatomy, linear_at, weight_of
from ..errors import PruningError
from ..offloading import device_of, tensor_store

# Directions with less than this part of the largest eigenvalue are left out of a square root.
NEGLIGIBLE = 1e-8


class OutputInformation:
    """Σ g gᵀ over tokens and examples, with g the loss's gradient with respect to a block's output.

    With inputs h and an error ΔW of the output projection, tr(Σ g gᵀ · ΔW E[h hᵀ] ΔWᵀ) is the Fisher information of ΔW
    as Kronecker-factored curvature has it (Martens and Grosse 2015): summed over examples, as Fisher scores of gates
    are, with tokens taken to be independent of each other.

    A context manager: what runs forward inside of it is watched, and counted whenever gradients go backward through
    it.

    Args:
        model: the model.
        anatomy: from `describe_model`. Experts are left out: each sees tokens of its own.

    Attributes:
        matrices: by block key, `[hidden, hidden]`, float64; in files where the model's weights are (`tensor_store`).
    """

    def __init__(self, model: nn.Module, anatomy: ModelAnatomy) -> None:
        self._projections: dict[str, nn.Module] = {}
        self._handles: list[RemovableHandle] = []
        self.matrices = tensor_store(model)
        for block in anatomy.blocks:
            if block.output.expert is None:
                layer = model.get_submodule(block.layer)
                size = len(weight_of(layer, block.output))
                self._projections[block.key] = linear_at(layer, block.output)
                self.matrices[block.key] = torch.zeros(size, size, dtype=torch.float64, device=device_of(layer))

    def __enter__(self) -> OutputInformation:
        self._handles = [
            projection.register_forward_hook(partial(self._watch, key)) for key, projection in self._projections.items()
        ]
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watch(self, key: str, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(partial(self._add, key))

    def _add(self, key: str, gradient: torch.Tensor) -> None:
        rows = gradient.detach().flatten(0, -2).float()
        matrix = self.matrices[key]
        matrix += (rows.T @ rows).double()
        self.matrices[key] = matrix


def metric_root(metric: torch.Tensor) -> torch.Tensor:
    """R `[directions, size]` with Rᵀ R = metric `[size, size]`, but for negligible directions.

    Raises:
        PruningError: the metric is not finite; eigenvalues would then say anything.
    """
    if not metric.isfinite().all():
        raise PruningError(
            "Gradients with respect to a block's output are not finite. Look for overflow in half precision: load the"
            " model with dtype=torch.bfloat16 or float32."
        )
    values, vectors = torch.linalg.eigh(metric.double())
    counted = values > NEGLIGIBLE * values[-1:].clamp(min=0)
    return values[counted].sqrt()[:, None] * vectors[:, counted].T
