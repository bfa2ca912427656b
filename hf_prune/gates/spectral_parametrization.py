"""A weight that is computed from a raw one by `torch.nn.utils.parametrize`, behind an ordinary state dict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from .singular_values import power_iteration, stretch, top_singular_vector

FORMS = ("clip", "divide")

_WEIGHT = "weight"
_RAW = f"parametrizations.{_WEIGHT}.original"


class SpectralNorm(nn.Module):
    """Scales a matrix by its largest singular value; pure, but for `iterate` and `restart`.

    Singular values are computed in float32 at least, also under autocast.

    Attributes:
        vector: `[columns]`, what the power iteration keeps. It is in no state dict.
        handles: of the hooks on the module whose weight this is.
    """

    vector: torch.Tensor

    def __init__(self, weight: torch.Tensor, bound: float, form: str, iterations: int) -> None:
        super().__init__()
        self.bound, self.form, self.iterations = bound, form, iterations
        self.handles: list[RemovableHandle] = []
        wide = _wide(weight.detach())
        self.register_buffer("vector", wide.new_empty(wide.shape[1]), persistent=False)
        self.restart(weight)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The matrix as the model uses it."""
        with torch.autocast(weight.device.type, enabled=False):
            wide = _wide(weight)
            value = stretch(wide.detach() if self.form == "clip" else wide, self._vector_as(wide))
            # A matrix of zeros is not to be divided by its singular value.
            scale = self.bound / torch.where(value > 0, value, 1.0)
            return (wide * (scale.clamp(max=1) if self.form == "clip" else scale)).to(weight.dtype)

    @torch.no_grad()
    def singular_value(self, weight: torch.Tensor) -> torch.Tensor:
        """The largest singular value of the raw matrix, a scalar, by the power iteration so far."""
        with torch.autocast(weight.device.type, enabled=False):
            wide = _wide(weight)
            return stretch(wide, self._vector_as(wide))

    @torch.no_grad()
    def iterate(self, weight: torch.Tensor) -> None:
        """Follows the matrix by the power iteration's steps."""
        with torch.autocast(weight.device.type, enabled=False):
            wide = _wide(weight)
            self.vector.copy_(power_iteration(wide, self._vector_as(wide), self.iterations))

    @torch.no_grad()
    def restart(self, weight: torch.Tensor) -> None:
        """Begins anew with the exact vector."""
        with torch.autocast(weight.device.type, enabled=False):
            self.vector.copy_(top_singular_vector(_wide(weight)))

    def _vector_as(self, wide: torch.Tensor) -> torch.Tensor:
        # A copy: autograd may keep it, and the next forward pass changes the vector in place.
        return self.vector.to(wide.dtype, copy=True)


@dataclass(frozen=True)
class NormalisedMatrix:
    """One matrix of a model with spectral normalisation.

    Attributes:
        name: of the weight, as in a state dict.
        module: what uses it.
        norm: what computes it.
    """

    name: str
    module: nn.Module
    norm: SpectralNorm

    @property
    def raw(self) -> nn.Parameter:
        """What is trained."""
        raw: nn.Parameter = self.module.get_parameter(_RAW)
        return raw

    @torch.no_grad()
    def folded(self) -> torch.Tensor:
        """The weight as the model uses it, as a tensor of its own."""
        weight: torch.Tensor = self.norm(self.raw)
        return weight


def normalised_matrices(model: nn.Module) -> list[NormalisedMatrix]:
    """The matrices of a model that have spectral normalisation."""
    return [
        NormalisedMatrix(f"{path}.{_WEIGHT}".lstrip("."), module, norm)
        for path, module in model.named_modules()
        for norm in _norms(module)
    ]


def place(module: nn.Module, norm: SpectralNorm) -> None:
    """Has a module's weight computed; its `Parameter` stays the same object, and is what is trained."""
    parametrize.register_parametrization(module, _WEIGHT, norm)
    norm.handles = [
        module.register_state_dict_post_hook(_give_folded),
        module.register_load_state_dict_pre_hook(_take_raw),
        module.register_load_state_dict_post_hook(_restart),
    ]


@torch.no_grad()
def take_off(matrix: NormalisedMatrix, *, fold: bool) -> None:
    """Gives a module its parameter back, with the weights that it has had (`fold`), or the raw ones."""
    weight = matrix.folded() if fold else None
    for handle in matrix.norm.handles:
        handle.remove()
    # torch takes the computed weight out of the module's class, which deep copies of the module share.
    shared = type(matrix.module)
    matrix.module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    others = list(matrix.module._parameters)
    parametrize.remove_parametrizations(matrix.module, _WEIGHT, leave_parametrized=False)
    for name in others:  # the weight comes first again, as optimizers count parameters
        matrix.module._parameters[name] = matrix.module._parameters.pop(name)
    if weight is not None:
        matrix.module.get_parameter(_WEIGHT).copy_(weight)


def _norms(module: nn.Module) -> Iterator[SpectralNorm]:
    if parametrize.is_parametrized(module, _WEIGHT):
        parts: Any = module.parametrizations
        yield from (part for part in parts[_WEIGHT] if isinstance(part, SpectralNorm))


@torch.no_grad()
def _give_folded(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """What is saved is the weight that the model uses, under its own name and in its own place."""
    del state[prefix + _RAW]
    state[prefix + _WEIGHT] = getattr(module, _WEIGHT)
    for name, _ in module.named_parameters(recurse=False):
        state[prefix + name] = state.pop(prefix + name)


def _take_raw(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """What is loaded becomes the raw weight."""
    if prefix + _WEIGHT in state:
        state[prefix + _RAW] = state.pop(prefix + _WEIGHT)


def _restart(module: nn.Module, incompatible_keys: Any) -> None:
    """Weights from elsewhere may be stretched most in another direction."""
    for matrix in normalised_matrices(module):
        matrix.norm.restart(matrix.raw)


def _wide(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
