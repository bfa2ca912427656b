"""Which weight matrices a model has, where single weights are pruned: projections, embeddings and experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import PruningError
from ..shards import check_rows, own_rows, put_shards_back
from .matrix_names import matrix_name


@dataclass(frozen=True)
class WeightMatrix:
    """One parameter whose single weights can be pruned.

    Attributes:
        name: of the parameter, as in the state dict; where weights are tied, the first of their names.
        module: the name of the module that holds it, as in the model without PEFT's wrappers around single layers.
        parameter: `[outputs, inputs]`, or as the module stores it; experts have an axis of experts before. With FSDP2
            it is a DTensor of that shape, of which this process holds some rows.
        input_axis: the axis along which one output's weights lie.
        embedding: whether it is a table of embeddings.
    """

    name: str
    module: str
    parameter: nn.Parameter
    input_axis: int = -1
    embedding: bool = False

    @property
    def values(self) -> torch.Tensor:
        """The weights that this process holds, in the parameter's memory: all of them, or with FSDP2 its own rows."""
        return own_rows(self.parameter)

    @property
    def kind(self) -> str:
        """Its name in its layer, the same in every layer ("attention.self.query")."""
        return matrix_name(self.name).kind


def all_matrices(model: nn.Module) -> list[WeightMatrix]:
    """Every weight matrix of a model, tied ones once; neither PEFT's adapters nor what a cut left empty."""
    adapters = _adapters(model)
    seen: set[int] = set()
    found = []
    for path, module in model.named_modules():
        if id(module) in adapters:
            continue
        for name, parameter in own_parameters(module):
            if id(parameter) in seen or not parameter.numel() or not _is_matrix(module, name, parameter):
                continue
            seen.add(id(parameter))
            axis = _input_axis(module, parameter)
            embedding = isinstance(module, nn.Embedding)
            # What PEFT has wrapped goes by the name that it had.
            own = path.removesuffix(".base_layer")
            found.append(WeightMatrix(f"{path}.{name}".lstrip("."), own, parameter, axis, embedding))
    return found


def _input_axis(module: nn.Module, parameter: torch.Tensor) -> int:
    """The axis of the inputs that one output is a sum over; experts may be stored `[experts, in, out]`."""
    if parameter.dim() == 3:
        return -2 if getattr(module, "is_transposed", False) else -1
    return 0 if isinstance(module, Conv1D) else -1


def own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's own parameters by name; where `torch.nn.utils.parametrize` computes one, the one that is trained."""
    yield from module.named_parameters(recurse=False)
    parts: Mapping[str, Any] = getattr(module, "parametrizations", {})
    yield from ((name, part.original) for name, part in parts.items() if part.is_tensor)


def choose_matrices(
    model: nn.Module, choose: Callable[[list[str], list[str]], set[str]], *, only_layers: bool = False
) -> list[WeightMatrix]:
    """The matrices to prune.

    Args:
        model: any Transformers model, also inside a PEFT model.
        choose: picks module names: from all that hold a matrix, and from those that are meant by default. The default
            is the base model's projections and word embeddings, without position and type embeddings and without task
            heads (Gordon et al. 2020, section 3.1). `PruningConfig.targets` is such a function.
        only_layers: by default leave out what is in no list of layers, too: embeddings and poolers.

    Raises:
        PruningError: there is none, or one is not of floating-point numbers or has no values yet.
    """
    put_shards_back(model)
    matrices = all_matrices(model)
    wanted = choose([matrix.module for matrix in matrices], list(_default_modules(model, matrices, only_layers)))
    chosen = [matrix for matrix in matrices if matrix.module in wanted]
    if not chosen:
        raise PruningError(
            f"{type(model).__name__} has no weight matrices to prune by default; name some in target_modules:"
            f" it has {', '.join(matrix.module for matrix in matrices[:12]) or 'none at all'}."
        )
    for matrix in chosen:
        _check(matrix)
    return chosen


def default_matrices(model: nn.Module) -> list[WeightMatrix]:
    """The matrices that are pruned by default, with or without values (see `offloading`); maybe none."""
    matrices = all_matrices(model)
    wanted = set(_default_modules(model, matrices, only_layers=False))
    return [matrix for matrix in matrices if matrix.module in wanted]


def inner_model(model: Any) -> PreTrainedModel:
    """The Transformers model, without a PEFT model's wrappers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _default_modules(model: nn.Module, matrices: list[WeightMatrix], only_layers: bool) -> Iterator[str]:
    base = _base_model(model)
    inside = {id(parameter) for parameter in base.parameters()}
    words = {id(module.weight) for module in _word_embeddings(base)}
    outputs = {id(parameter) for parameter in _output_projection(base)}
    for matrix in matrices:
        place = id(matrix.parameter)
        if place not in inside or (matrix.embedding and place not in words):
            continue
        if place in outputs - words or (only_layers and (not matrix_name(matrix.name).layer or matrix.embedding)):
            continue
        yield matrix.module


def _base_model(model: nn.Module) -> nn.Module:
    """The model below the task head, and below a PEFT model's wrappers."""
    inner = inner_model(model)
    return inner.base_model if isinstance(inner, PreTrainedModel) else inner


def _word_embeddings(base: nn.Module) -> Iterator[nn.Embedding]:
    """What turns token ids into vectors; a model of images has none."""
    models = (module for module in base.modules() if isinstance(module, PreTrainedModel))
    for model in models:
        try:
            words = model.get_input_embeddings()
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(words, nn.Embedding):
            yield words


def _output_projection(base: nn.Module) -> Iterator[nn.Parameter]:
    """A language model's projection to its vocabulary, where the base model itself has one."""
    outputs = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    if isinstance(outputs, nn.Module):
        yield from outputs.parameters(recurse=False)


def _adapters(model: nn.Module) -> set[int]:
    """The modules that PEFT put beside the model's own."""
    found = set()
    for module in model.modules():
        for name in getattr(module, "adapter_layer_names", ()):
            part = getattr(module, name, None)
            if isinstance(part, nn.Module):
                found |= {id(inner) for inner in part.modules()}
    return found


def _is_matrix(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if isinstance(module, (nn.Linear, nn.Embedding, Conv1D)):
        return name == "weight"
    # Experts keep the matrices of all of them in one parameter; position tables may have such a shape, too.
    return parameter.dim() == 3 and "expert" in type(module).__name__.lower()


def _check(matrix: WeightMatrix) -> None:
    parameter = matrix.parameter
    check_rows(matrix.name, parameter)
    if not parameter.is_floating_point():
        raise PruningError(
            f"{matrix.name} holds {str(parameter.dtype).removeprefix('torch.')} numbers; only floating-point weights"
            " can be pruned. Prune before quantising, or leave it out with exclude_modules."
        )
    if parameter.device == torch.device("meta"):
        raise PruningError(f"{matrix.name} has no values yet (it is on the meta device). Load the model first.")
