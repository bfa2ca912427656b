"""Low-rank adapters that are trained in a model's place and merged, after which nothing of them is left."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import PruningError

LORA_RANK = 16


def lora_config(model: PreTrainedModel, layers: Sequence[str], lora: bool | LoraConfig) -> LoraConfig | None:
    """The adapters to train; None for all weights.

    Args:
        model: what they are put on.
        layers: paths of its layers, whose projections get adapters where a configuration names none.
        lora: whether there are any, or which.

    Raises:
        PruningError: there is nothing that adapters could be put on.
    """
    if not isinstance(lora, (bool, LoraConfig)):
        raise PruningError(f"lora={lora!r} must be True, False (train all weights) or a LoraConfig of PEFT.")
    if lora is False:
        return None
    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK) if lora is True else copy.copy(lora)
    if config.target_modules is None:
        if config.layers_to_transform is not None:
            raise PruningError(
                f"layers_to_transform={config.layers_to_transform!r} chooses among target_modules, which the LoraConfig"
                " does not name: by default adapters are on the projections of all layers."
            )
        targets = {
            f"{layer}.{name}": module
            for layer in layers
            for name, module in model.get_submodule(layer).named_modules()
            # What a cut has left empty has no weight to adapt; subclasses may use theirs without calling the module.
            if type(module) in (nn.Linear, Conv1D) and module.weight.numel()
        }
        if not targets:
            raise PruningError(
                f"The layers of {type(model).__name__} have no linear projections for adapters: train all weights"
                " (lora=False), or name modules in a LoraConfig."
            )
        config.target_modules = set(targets)
        config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in targets.values())
    return config


@contextmanager
def adapted(model: PreTrainedModel, config: LoraConfig | None) -> Iterator[nn.Module]:
    """The model with adapters, which are merged at the end, or dropped if anything fails; its modules stay its own.

    Modules that are trained beside the adapters (`modules_to_save`) are copies, whose weights the model's own get.

    Raises:
        PruningError: PEFT refuses the configuration.
    """
    if config is None:
        yield model
        return
    own = dict(model.named_modules())
    places = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    try:
        student = get_peft_model(model, config)
        _check_untied(student, places)
    except BaseException as error:
        _put_back(model, own, learnt=False)
        vars(model).pop("peft_config", None)
        if isinstance(error, ValueError) and not isinstance(error, PruningError):
            raise PruningError(f"PEFT puts no such adapters on {type(model).__name__}: {error}") from error
        raise
    try:
        yield student
        student.merge_and_unload(safe_merge=True)
        _put_back(model, own, learnt=True)
    except BaseException:
        student.unload()
        _put_back(model, own, learnt=False)
        raise


def trained_copies(student: nn.Module) -> list[nn.Module]:
    """The modules in what is trained beside the adapters, as copies of the model's own."""
    return [module for wrapper in _wrappers(student).values() for module in wrapper.modules_to_save.modules()]


def _wrappers(student: nn.Module) -> dict[str, ModulesToSaveWrapper]:
    return {name: module for name, module in student.named_modules() if isinstance(module, ModulesToSaveWrapper)}


def _check_untied(student: nn.Module, places: Mapping[int, int]) -> None:
    """Refuses copies of modules whose weights another module has, too: after the training there is one place for both.

    Args:
        student: with adapters.
        places: of how many modules each parameter was, by its id.
    """
    for name, wrapper in _wrappers(student).items():
        if any(places[id(parameter)] > 1 for parameter in wrapper.original_module.parameters()):
            raise PruningError(
                f"modules_to_save trains {name.removeprefix('base_model.model.')} apart from the module that its"
                " weights are tied to. Leave it out, or train all weights (lora=False)."
            )


def _put_back(model: PreTrainedModel, own: Mapping[str, Any], learnt: bool) -> None:
    """Modules that were replaced come back, outer ones first, if wanted with the weights of what was in their place."""
    for name, module in own.items():
        found = model.get_submodule(name)
        if found is not module:
            if learnt:
                module.load_state_dict(found.state_dict())
            model.set_submodule(name, module)
