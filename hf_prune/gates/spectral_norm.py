"""Spectral normalisation of a model's matrices (Lin et al. 2020, section 3.3; Miyato et al. 2018).

While it is on, every matrix is used as W · scale, with the largest singular value λ(W) as a power iteration follows it:
one step per forward pass of the model in training mode, none in evaluation, and none where gradient checkpointing
computes a layer again. What is trained is the raw W, the same `Parameter` as before, now named
`parametrizations.weight.original`. The state dict is that of the model without: it holds the matrices as the model
uses them, so that whatever saves the model writes an ordinary checkpoint.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..anatomy import WeightMatrix, choose_matrices
from ..config import PruningConfig
from ..errors import PruningError
from .spectral_parametrization import FORMS, NormalisedMatrix, SpectralNorm, normalised_matrices, place, take_off

_HOOK = "_spectral_norm_hook"


def add_spectral_norm(
    model: nn.Module,
    *,
    bound: float = 5.0,
    form: str = "clip",
    iterations: int = 1,
    target_modules: list[str] | None = None,
    exclude_modules: list[str] | None = None,
) -> list[str]:
    """Puts spectral normalisation on a model's matrices, beginning with their exact singular values.

    Call it before the model is wrapped (by DDP, say); an optimizer made before stays valid. It may be called again for
    other matrices.

    Args:
        model: any Transformers model.
        bound: the largest singular value that is allowed ("clip"), or the one that all matrices get ("divide"; the
            paper's formula has 1, its experiments 5). With "clip" it may be infinite: nothing is changed, but
            `largest_singular_values` can follow the matrices.
        form: "clip" scales W by min(1, bound / λ(W)), and its gradient takes the scale as a constant; "divide" scales
            it by bound / λ(W), and its gradient passes through λ(W) as in Miyato et al. 2018.
        iterations: steps of the power iteration per forward pass in training mode.
        target_modules, exclude_modules: names of modules, as for `PruningConfig`; by default the attention and FFN
            projections of all layers.

    Returns:
        The names of the weights.

    Raises:
        PruningError: a setting is not allowed, or a matrix cannot be normalised.
    """
    _check_settings(bound, form, iterations)
    config = PruningConfig(target_modules=target_modules, exclude_modules=exclude_modules)
    matrices = choose_matrices(model, config.targets, only_layers=True)
    uses = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    for matrix in matrices:
        _check(model, matrix, uses[id(matrix.parameter)])
    for matrix in matrices:
        place(_module(model, matrix), SpectralNorm(matrix.parameter, bound, form, iterations))
    if _HOOK not in model.__dict__:
        model.__dict__[_HOOK] = model.register_forward_pre_hook(_iterate)
    return [matrix.name for matrix in matrices]


def remove_spectral_norm(model: nn.Module, *, fold: bool = True) -> None:
    """Takes spectral normalisation off, if there is any.

    Weight masks may stay on, but what they removed is not scaled; so `WeightMasks.remove` comes first where removed
    weights are to come back.

    Args:
        model: the model that has it.
        fold: leave the matrices as the model has used them, which changes no output; otherwise the raw ones.
    """
    for matrix in normalised_matrices(model):
        take_off(matrix, fold=fold)
    for module in model.modules():
        handle = module.__dict__.pop(_HOOK, None)
        if handle is not None:
            handle.remove()


def has_spectral_norm(model: nn.Module) -> bool:
    """Whether a matrix of the model has spectral normalisation."""
    return bool(normalised_matrices(model))


def restart_spectral_norm(model: nn.Module) -> None:
    """Begins anew with exact singular values, after weights have changed by more than a step of training.

    Loading a state dict and `load_spectral_state` do not need it.
    """
    for matrix in normalised_matrices(model):
        matrix.norm.restart(matrix.raw)


def largest_singular_values(model: nn.Module) -> dict[str, float]:
    """The largest singular value of every normalised matrix, before it is scaled (the paper's Figure 6).

    They are those of the power iteration, and cost one product of matrix and vector each. With "clip" the model uses
    matrices whose value is at most the bound.

    Returns:
        Values by the weights' names.

    Raises:
        PruningError: the model has no spectral normalisation.
    """
    matrices = normalised_matrices(model)
    if not matrices:
        raise PruningError(
            f"{type(model).__name__} has no spectral normalisation that would follow its singular values. Call"
            " add_spectral_norm; with bound=math.inf it changes nothing."
        )
    return {matrix.name: float(matrix.norm.singular_value(matrix.raw)) for matrix in matrices}


def spectral_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What going on bit for bit takes, beside the state dict.

    Returns:
        `<name>.vector`, the power iteration's, and `<name>.raw` where the raw weight is not the one that the model
        uses; tensors of their own, on the CPU. Empty without spectral normalisation.
    """
    tensors = {}
    for matrix in normalised_matrices(model):
        raw = matrix.raw.detach()
        tensors[f"{matrix.name}.vector"] = matrix.norm.vector.to("cpu", copy=True)
        if not torch.equal(raw, matrix.folded()):
            tensors[f"{matrix.name}.raw"] = raw.to("cpu", copy=True)
    return tensors


@torch.no_grad()
def load_spectral_state(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `spectral_state`, for a normalised model that has loaded the state dict of that moment.

    Args:
        model: the model, with spectral normalisation on the same matrices.
        tensors: of that function; others among them are left alone.

    Raises:
        PruningError: tensors are missing or do not fit; then nothing is changed.
    """
    matrices = normalised_matrices(model)
    for matrix in matrices:
        if f"{matrix.name}.vector" not in tensors:
            raise PruningError(
                f"{matrix.name}.vector is missing: the state is of a model whose {matrix.name} was not normalised."
            )
        for name, now in _state_of(matrix).items():
            _check_tensor(name, tensors.get(name, now), now)
    for matrix in matrices:
        for name, now in _state_of(matrix).items():
            now.copy_(tensors.get(name, now))


def _state_of(matrix: NormalisedMatrix) -> dict[str, torch.Tensor]:
    return {f"{matrix.name}.vector": matrix.norm.vector, f"{matrix.name}.raw": matrix.raw}


def _iterate(model: nn.Module, inputs: Any) -> None:
    # At the model, not where a weight is used: a layer may use it twice, or be computed again in the backward pass.
    if model.training:
        for matrix in normalised_matrices(model):
            matrix.norm.iterate(matrix.raw)


def _module(model: nn.Module, matrix: WeightMatrix) -> nn.Module:
    return model.get_submodule(matrix.name.rpartition(".")[0])


def _check_settings(bound: Any, form: str, iterations: Any) -> None:
    if form not in FORMS:
        raise PruningError(f"form={form!r} is unknown; use one of {', '.join(FORMS)}.")
    positive = isinstance(bound, (int, float)) and not isinstance(bound, bool) and bound > 0
    if not positive or (bound == math.inf and form != "clip"):
        raise PruningError(f"bound={bound!r} must be a number above 0, and finite with form='divide'.")
    if not isinstance(iterations, int) or isinstance(iterations, bool) or iterations < 1:
        raise PruningError(f"iterations={iterations!r} must be a whole number of at least 1.")


def _check(model: nn.Module, matrix: WeightMatrix, uses: int) -> None:
    if matrix.embedding or matrix.parameter.dim() != 2:
        kind = "a table of embeddings" if matrix.embedding else "the matrices of several experts in one parameter"
        raise PruningError(
            f"{matrix.name} is {kind}; only the matrix of a Linear or a Conv1D can be normalised. Leave it out:"
            f" exclude_modules=[{matrix.module.rpartition('.')[2]!r}]."
        )
    leave_out = f"leave it out: exclude_modules=[{matrix.module!r}]"
    if matrix.name != f"{matrix.module}.weight":
        raise PruningError(
            f"{matrix.name} is wrapped by a PEFT adapter, which changes it in ways of its own. Merge the adapter, or"
            f" {leave_out}."
        )
    if "weight" in getattr(_module(model, matrix), "parametrizations", {}):
        raise PruningError(
            f"{matrix.name} is computed by a parametrization already. Take that off (remove_spectral_norm), or"
            f" {leave_out}."
        )
    if uses > 1:
        raise PruningError(
            f"{matrix.name} is tied: another module uses it, too, and would go on with the raw one. Untie it, or"
            f" {leave_out}."
        )
    if not bool(matrix.parameter.isfinite().all()):
        raise PruningError(f"{matrix.name} has weights that are not finite, and no largest singular value.")


def _check_tensor(name: str, tensor: torch.Tensor, now: torch.Tensor) -> None:
    if tensor.shape != now.shape or tensor.dtype != now.dtype:
        raise PruningError(
            f"{name}: {tuple(now.shape)} of {now.dtype} is needed, got {tuple(tensor.shape)} of {tensor.dtype}."
        )
